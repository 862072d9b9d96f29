package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// newFolder opens an empty folder that only this user can access. It creates the folder, or takes one that exists. Files
// that are written through the returned root never leave that folder: a link that another user put in the path, or put in
// place of the folder, is an error and is not followed.
func newFolder(path string) (root *os.Root, err error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	found, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case !found.IsDir():
		return nil, fmt.Errorf("%s is not a folder (a link to a folder is not accepted): nothing was written; name a new folder", path)
	case !ownedByUser(found) || found.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s is not accessible to you alone (%s), so others could read or change its files: nothing was "+
			"written; name a new folder", path, found.Mode())
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
		return root, fmt.Errorf("%s was replaced by another folder while it was opened: nothing was written; name a new folder", path)
	}
	dir, err := root.Open(".")
	if err != nil {
		return root, err
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return root, errors.Join(fmt.Errorf("%s is not empty: nothing was written; name a new folder", path), err)
	}
	return root, nil
}

// createIn creates a file that only this user can access. It must not exist.
func createIn(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// writeIn creates a file with a content. A file that has this content already is left as it is.
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
