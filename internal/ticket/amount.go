package ticket

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Amount is a decimal amount of money, with the scale that it was written with: 2 and 2.00 are equal in value, and each is kept
// as written. The zero Amount means "not read", which is not the same as 0. It is never a float.
type Amount struct {
	units int64 // the digits without the decimal point
	scale uint8 // how many of them are after the point
	set   bool
}

// Limits of an amount. A larger one is a problem, because no till writes it.
const (
	MaxAmountDigits = 12 // before the decimal point
	MaxAmountScale  = 6  // after it
)

// ErrAmount is returned for text that is not an amount.
var ErrAmount = errors.New("not an amount")

// Errors that wrap ErrAmount with a reason. They are made once, because a ticket may have a bad price on each line.
var (
	errAmbiguous = fmt.Errorf("%w: it is unclear whether the comma separates decimals or thousands", ErrAmount)
	errAbsurd    = fmt.Errorf("%w: it has more than %d digits before or %d after the decimal sign",
		ErrAmount, MaxAmountDigits, MaxAmountScale)
)

// IsSet reports whether the amount was read.
func (a Amount) IsSet() bool { return a.set }

// AppendText appends the amount in plain decimal form (-3.10), or nothing if it is not set.
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

// String returns the amount in plain decimal form, or "" if it is not set.
func (a Amount) String() string { return string(a.AppendText(nil)) }

// Units returns the amount as a number of its smallest units at a scale, such as 16900000 for 16.90 at scale 6. It fails if
// the amount is not set, or has more digits after the point. At a scale of at most MaxAmountScale it does not overflow.
func (a Amount) Units(scale uint8) (units int64, ok bool) {
	if !a.set || a.scale > scale {
		return 0, false
	}
	units = a.units
	for range scale - a.scale {
		units *= 10
	}
	return units, true
}

// Equal reports whether two amounts have the same value. Their scales may differ. Two amounts that are not set are equal.
func (a Amount) Equal(b Amount) bool {
	if a.set != b.set {
		return false
	}
	// With at most 12 digits before the point and 6 after it, neither overflows at the larger scale.
	for ; a.scale < b.scale; a.scale++ {
		a.units *= 10
	}
	for ; b.scale < a.scale; b.scale++ {
		b.units *= 10
	}
	return a.units == b.units
}

// ParseAmount reads an amount: an optional sign, digits, and a decimal point or comma with digits on both sides. A single comma
// with three digits after it is refused, because it could also separate thousands. A point in that place is accepted, because
// tickets use it for decimals. Groups of three digits may be separated by spaces, or by the one of point and comma that is not
// the decimal sign. All else is an error that wraps ErrAmount: an empty text, NaN, exponents, currencies, more than
// MaxAmountDigits digits before or MaxAmountScale digits after the decimal sign.
func ParseAmount(s string) (Amount, error) {
	if a, ok := parsePlain(s); ok {
		return a, nil
	}
	return parseAmount(s, 0)
}

// parseAmount reads an amount whose decimal sign is known; 0 if it is not.
func parseAmount(s string, decimal byte) (Amount, error) {
	digits, negative := s, false
	switch {
	case strings.HasPrefix(s, "-"):
		digits, negative = s[1:], true
	case strings.HasPrefix(s, "\u2212"): // minus sign
		digits, negative = s[len("\u2212"):], true
	case strings.HasPrefix(s, "+"):
		digits = s[1:]
	}
	whole, fraction, err := splitAmount(digits, decimal)
	if err != nil {
		return Amount{}, err
	}
	a := Amount{scale: uint8(len(fraction)), set: true}
	for _, part := range [...]string{whole, fraction} {
		for i := range len(part) {
			if part[i] < '0' || part[i] > '9' {
				return Amount{}, ErrAmount
			}
			a.units = a.units*10 + int64(part[i]-'0')
		}
	}
	if negative {
		a.units = -a.units
	}
	return a, nil
}

// parsePlain reads the most common forms: 2 and 14.90. A text that it does not read may still be an amount. Without it, reading
// an amount takes three times as long (BenchmarkParseAmount).
func parsePlain(s string) (Amount, bool) {
	if len(s) > MaxAmountDigits+len(".")+MaxAmountScale {
		return Amount{}, false
	}
	units, point := int64(0), len(s)
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			units = units*10 + int64(c-'0')
		case c == '.' && point == len(s) && i < len(s)-1:
			point = i
		default:
			return Amount{}, false
		}
	}
	scale := max(len(s)-point-1, 0)
	if point < 1 || point > MaxAmountDigits || scale > MaxAmountScale {
		return Amount{}, false
	}
	return Amount{units: units, scale: uint8(scale), set: true}, true
}

// splitAmount returns the digits before and after the decimal sign, without the signs between groups.
func splitAmount(s string, known byte) (whole, fraction string, err error) {
	points, commas := strings.Count(s, "."), strings.Count(s, ",")
	whole = s
	group, decimal := "", ""
	switch {
	case known == '.' && points <= 1:
		group, decimal = signs(commas, ","), signs(points, ".")
	case known == ',' && commas <= 1:
		group, decimal = signs(points, "."), signs(commas, ",")
	case known != 0:
		return "", "", ErrAmount
	case points == 0 && commas == 0:
	case points == 1 && commas == 0:
		decimal = "."
	case points == 0 && commas == 1:
		decimal = ","
	case points > 1 && commas == 0:
		group = "."
	case points == 0 && commas > 1:
		group = ","
	case strings.LastIndexByte(s, '.') > strings.LastIndexByte(s, ',') && points == 1:
		group, decimal = ",", "."
	case strings.LastIndexByte(s, ',') > strings.LastIndexByte(s, '.') && commas == 1:
		group, decimal = ".", ","
	default:
		return "", "", ErrAmount
	}
	if decimal != "" {
		i := strings.LastIndex(s, decimal)
		whole, fraction = s[:i], s[i+1:]
		if fraction == "" {
			return "", "", ErrAmount
		}
	}
	spaces := strings.ContainsAny(whole, " \u00a0\u202f")
	switch {
	case spaces && group != "":
		return "", "", ErrAmount
	case known == 0 && decimal == "," && group == "" && !spaces && len(fraction) == 3:
		return "", "", errAmbiguous
	case spaces:
		whole, group = strings.ReplaceAll(strings.ReplaceAll(whole, "\u00a0", " "), "\u202f", " "), " "
	}
	if group != "" {
		if known != 0 && strings.HasPrefix(whole, "0") { // 0.234 is not 234, although the point separates groups
			return "", "", ErrAmount
		}
		if whole, err = joinGroups(whole, group); err != nil {
			return "", "", err
		}
	}
	switch {
	case whole == "":
		return "", "", ErrAmount
	case len(whole) > MaxAmountDigits || len(fraction) > MaxAmountScale:
		return "", "", errAbsurd
	}
	return whole, fraction, nil
}

// signs returns a sign if a text has it n times, more than 0.
func signs(n int, sign string) string {
	if n == 0 {
		return ""
	}
	return sign
}

// joinGroups removes the signs between groups of three digits.
func joinGroups(s, sign string) (string, error) {
	if len(s) > 2*MaxAmountDigits {
		return "", ErrAmount
	}
	groups := strings.Split(s, sign)
	for i, group := range groups {
		if len(group) != 3 && (i > 0 || len(group) < 1 || len(group) > 3) {
			return "", ErrAmount
		}
	}
	return strings.Join(groups, ""), nil
}
