//go:build chaosclock

package ticket

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// Now is a clock that is wrong by the duration in the file that CHAOS_CLOCK names, such as 50h or -50h, so that `make chaos` can
// show the effect. The file is read each time, because a clock may be corrected while a server runs.
func Now() time.Time {
	text, err := os.ReadFile(os.Getenv("CHAOS_CLOCK"))
	if err != nil {
		panic(fmt.Sprintf("read the clock's fault: %s", err))
	}
	wrong, err := time.ParseDuration(strings.TrimSpace(string(text)))
	if err != nil {
		panic(fmt.Sprintf("read the clock's fault: %s", err))
	}
	return time.Now().Round(0).Add(wrong)
}
