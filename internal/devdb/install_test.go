package devdb

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPackagesFor(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"postgresql"}, packagesFor("postgres"))
	assert.Equal(t, []string{"gcc", "libc6-dev"}, packagesFor("compiler"))
	assert.Empty(t, packagesFor("windows"))
}
