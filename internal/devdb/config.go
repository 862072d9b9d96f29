package devdb

import (
	"io"
	"maps"
	"strings"
)

// Config says which server to run. The zero value is a durable server in a temporary folder on a free port.
type Config struct {
	// Dir is the folder that keeps the server's data and password. It is made if it is missing. A cluster that is
	// already in it is used again. Defaults to a new temporary folder, which Stop removes. It is in memory when
	// Settings turn fsync off and there is room (/dev/shm), where databases are made ten times faster.
	Dir string

	// Port is the TCP port on 127.0.0.1. Defaults to a free one.
	Port int

	// Settings are postgresql.conf settings by name, for example Volatile(). Defaults to those of Postgres, which
	// are durable. The address and the port cannot be set here.
	Settings map[string]string

	// Log receives the server's log. Defaults to nowhere. Errors show the last lines in any case.
	Log io.Writer

	// Progress receives a sentence when something slow begins, such as an installation. Defaults to nowhere.
	Progress io.Writer

	// BinDir is the folder that holds initdb and postgres. Defaults to a search: PATH, then where the packages of
	// Debian, Red Hat and Homebrew put them, newest version first. When nothing is found, and this process is root
	// on a Debian, the package is installed.
	BinDir string
}

// Volatile returns the settings of a server that may lose its data in a crash of the machine (not of the server):
// what tests want. A commit is still visible to all connections when it returns.
func Volatile() map[string]string {
	return map[string]string{
		"fsync":              "off",
		"full_page_writes":   "off",
		"synchronous_commit": "on",
		"max_connections":    "300",
		"shared_buffers":     "128MB",
		// CREATE DATABASE and DROP DATABASE wait for checkpoints, and copy less WAL without replication.
		"wal_level":          "minimal",
		"max_wal_senders":    "0",
		"checkpoint_timeout": "1h",
		"log_checkpoints":    "off",
	}
}

func (c Config) isVolatile() bool { return strings.EqualFold(c.Settings["fsync"], "off") }

// Replicated returns the settings of Volatile for a server that can have standbys.
func Replicated() map[string]string {
	settings := Volatile()
	maps.Copy(settings, map[string]string{
		"wal_level":       "replica",
		"max_wal_senders": "10",
		"hot_standby":     "on",
		// A standby that was away for long must find what it missed.
		"wal_keep_size": "1GB",
	})

	return settings
}
