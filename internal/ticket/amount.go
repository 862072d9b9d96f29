package ticket

import (
	"errors"
	"strconv"
)

// Amount is a decimal amount of money with the scale it was written with (2 and 2.00 are equal in value and both
// kept as written). The zero Amount is "not read", which is not the same as 0. Never a float.
type Amount struct {
	units int64 // the digits without the decimal point
	scale uint8 // how many of them are behind the point
	set   bool
}

// Limits of an amount: what does not fit is absurd for a till, and a problem.
const (
	MaxAmountDigits = 12 // before the decimal point
	MaxAmountScale  = 6  // behind it
)

// ErrAmount is returned for text that is not an amount.
var ErrAmount = errors.New("not an amount")

// IsSet tells whether the amount was read at all.
func (a Amount) IsSet() bool { return a.set }

// AppendText appends the amount in plain decimal form (-3.10), and nothing when it is not set.
func (a Amount) AppendText(b []byte) []byte {
	if !a.set {
		return b
	}
	units := uint64(a.units)
	if a.units < 0 {
		b = append(b, '-')
		units = -units
	}
	if a.scale == 0 {
		return strconv.AppendUint(b, units, 10)
	}
	var pow uint64 = 1
	for range a.scale {
		pow *= 10
	}
	b = strconv.AppendUint(b, units/pow, 10)
	b = append(b, '.')
	frac := units % pow
	for pow /= 10; pow > 1 && frac < pow; pow /= 10 {
		b = append(b, '0')
	}
	return strconv.AppendUint(b, frac, 10)
}

// String returns the amount in plain decimal form, and "" when it is not set.
func (a Amount) String() string { return string(a.AppendText(nil)) }
