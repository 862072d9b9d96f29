//go:build !linux

package main

import (
	"errors"
	"syscall"
)

func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func mountSmall(string, int) error { return errors.New("only Linux has tmpfs") }

func unmount(string) error { return nil }
