package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// newFolder makes a folder that only this user can reach, or takes one that is this user's, is closed to others and is
// empty, and opens it. Who writes through what it returns never leaves that folder: a link that somebody put into the way,
// or exchanges meanwhile, is an error and not followed.
func newFolder(path string) (root *os.Root, err error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	found, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case !found.IsDir():
		return nil, fmt.Errorf("%s is not a folder (a link to one is none): nothing was written; name a new one", path)
	case !ownedByUser(found) || found.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s is not yours alone (%s), so others could read or change what is in it: nothing was written; "+
			"name a new folder", path, found.Mode())
	}
	if root, err = os.OpenRoot(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
			root = nil
		}
	}()
	opened, err := root.Stat(".")
	if err != nil {
		return root, err
	}
	if !os.SameFile(found, opened) {
		return root, fmt.Errorf("%s was exchanged for another folder meanwhile: nothing was written", path)
	}
	dir, err := root.Open(".")
	if err != nil {
		return root, err
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return root, errors.Join(fmt.Errorf("%s is not empty: nothing was written", path), err)
	}
	return root, nil
}

// createIn makes a file of this user alone, which must not be there.
func createIn(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// writeIn makes a file with a content. One that is there with the same content is left.
func writeIn(root *os.Root, name string, content []byte) error {
	file, err := createIn(root, name)
	if errors.Is(err, fs.ErrExist) {
		if there, readErr := root.ReadFile(name); readErr == nil && bytes.Equal(there, content) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}
