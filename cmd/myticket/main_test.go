package main

import (
	"testing"

	"myticket/internal/devdb/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
