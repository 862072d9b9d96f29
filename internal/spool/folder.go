package spool

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	bolt "go.etcd.io/bbolt"
)

// ErrInUse means that another process works on the folder.
var ErrInUse = errors.New("another process is working on this spool folder")

// The kinds of files in a spool's folder, by how their names end.
const (
	suffixSegment   = ".spool"     // tickets, to be drained
	suffixNew       = ".new"       // a segment that is being made, and holds nothing yet
	suffixDamaged   = ".damaged"   // a segment whose structure is broken; what is readable is drained
	suffixRecovered = ".recovered" // a damaged segment whose readable tickets are all drained; for a person to look at
	suffixRefused   = ".refused"   // tickets that the database refuses even unread; tried again at the next start
)

// lockName is the file that a process on the folder has locked. A copy of the folder may have none.
const lockName = "lock"

// folder is where a spool keeps its files. It holds the folder's lock, numbers the files and names them. One goroutine at a
// time may use it. If it was opened read-only, it changes nothing.
type folder struct {
	path     string
	readOnly bool
	lock     *flock.Flock
	number   uint64 // of the newest file
}

// openFolder makes the folder if it is not there, and takes its lock. It does not make the folders above it: if they are missing,
// the name is wrong or a disk is not there, and tickets would be kept on another disk.
func openFolder(path string, readOnly bool, logger *slog.Logger) (*folder, error) {
	f := &folder{path: path, readOnly: readOnly}
	if !readOnly {
		switch err := os.Mkdir(path, 0o700); {
		case err == nil:
			logger.Info("made the spool folder, which was not there", "folder", path)
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("the spool folder %s and the folder above it do not exist: no spool was made, because a disk may "+
				"not be mounted; make the folder above it, or name another one", path)
		case !errors.Is(err, fs.ErrExist) && !isFolder(path): // on a read-only disk the error of one that exists is another
			return nil, fmt.Errorf("make the spool folder: %w", err)
		}
	}
	return f, f.acquire()
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Look reports whether a folder is or was a spool, and whether there is anything in it at all.
func Look(path string) (isSpool, isEmpty bool, err error) {
	files, err := os.ReadDir(path)
	if err != nil {
		return false, false, err
	}
	isEmpty = true
	for _, file := range files {
		name := file.Name()
		if name == "lost+found" { // of a new disk
			continue
		}
		isEmpty = false
		switch filepath.Ext(name) {
		case suffixSegment, suffixDamaged, suffixRefused, suffixRecovered, suffixNew:
			_, err := parseName(name)
			isSpool = isSpool || err == nil
		default:
			isSpool = isSpool || name == lockName
		}
	}
	return isSpool, isEmpty, nil
}

// acquire takes the folder's lock, which the kernel releases when the process ends, however it ends (flock(2)).
func (f *folder) acquire() error {
	path := filepath.Join(f.path, lockName)
	take := (*flock.Flock).TryLock
	f.lock = flock.New(path, flock.SetPermissions(0o600))
	if f.readOnly {
		if _, err := os.Stat(path); err != nil {
			_, err = os.Stat(f.path)
			return err // a copied folder may have no lock
		}
		f.lock, take = flock.New(path, flock.SetFlag(os.O_RDONLY)), (*flock.Flock).TryRLock
	}
	ok, err := take(f.lock)
	switch {
	case err != nil && !f.readOnly && isReadOnlyDisk(err): // no other process can write there either
		return nil
	case err != nil:
		return fmt.Errorf("lock the spool folder: %w", err)
	case !ok:
		return fmt.Errorf("%w: %s", ErrInUse, f.path)
	}
	return nil
}

func (f *folder) close() error { return f.lock.Close() }

// list returns the segments in the folder, oldest first, and how many recovered files wait for a person.
func (f *folder) list(logger *slog.Logger) (segments []*segment, recovered int, err error) {
	files, err := os.ReadDir(f.path)
	if err != nil {
		return nil, 0, err
	}
	for _, file := range files {
		path := filepath.Join(f.path, file.Name())
		switch filepath.Ext(path) {
		case suffixNew:
			if !f.readOnly {
				_ = os.Remove(path) // it never held a ticket
			}
		case suffixRecovered:
			recovered++
		case suffixSegment, suffixDamaged, suffixRefused:
			s, err := parseName(path)
			if err != nil {
				logger.Warn("a file in the spool folder is left alone", "error", err)
				continue
			}
			segments = append(segments, s)
			f.number = max(f.number, s.number)
		}
	}
	slices.SortFunc(segments, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	return segments, recovered, nil
}

// parseName reads the name of a file that create made.
func parseName(path string) (*segment, error) {
	name := filepath.Base(path)
	stem, _, _ := strings.Cut(name, ".")
	number, random, ok := strings.Cut(stem, "-")
	s := &segment{path: path, damaged: filepath.Ext(path) == suffixDamaged}
	var err error
	if s.number, err = strconv.ParseUint(number, 16, 64); err == nil {
		var decoded []byte
		decoded, err = hex.DecodeString(random)
		ok = ok && copy(s.nonce[:], decoded) == nonceSize && len(decoded) == nonceSize
	}
	if err != nil || !ok {
		return nil, fmt.Errorf("%s is not a file of a spool: its name should be two numbers of 16 hexadecimal digits", name)
	}
	return s, nil
}

// create makes a segment with the next number. Its file is complete before it gets its name.
func (f *folder) create(suffix string) (_ *segment, err error) {
	s := &segment{number: f.number + 1, verified: true}
	if _, err := rand.Read(s.nonce[:]); err != nil {
		return nil, err
	}
	s.path = filepath.Join(f.path, fmt.Sprintf("%016x-%s%s", s.number, hex.EncodeToString(s.nonce[:]), suffix))
	temporary := s.path + suffixNew
	s.writer, err = bolt.Open(temporary, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		_ = os.Remove(temporary)
		return nil, err
	}
	err = s.writer.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket(bucketName)
		return err
	})
	if err == nil {
		err = os.Rename(temporary, s.path)
	}
	if err == nil {
		err = syncDir(f.path)
	}
	if err != nil {
		_ = s.writer.Close()
		_ = os.Remove(temporary)
		_ = os.Remove(s.path)
		return nil, err
	}
	s.db = s.writer
	f.number = s.number
	return s, nil
}

// rename gives a segment's file another suffix.
func (f *folder) rename(s *segment, suffix string) error {
	if f.readOnly {
		return nil
	}
	return ignoreReadOnlyDisk(s.rename(suffix))
}

// remove removes a segment's file.
func (f *folder) remove(s *segment) error {
	if f.readOnly {
		return nil
	}
	return ignoreReadOnlyDisk(s.remove())
}

// syncDir makes names durable: fsync(2), "Calling fsync() does not necessarily ensure that the entry in the directory
// containing the file has also reached disk".
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// isReadOnlyDisk reports whether an error means that a folder cannot be written, by any user or by this one.
func isReadOnlyDisk(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

// ignoreReadOnlyDisk is for changes that only tidy up.
func ignoreReadOnlyDisk(err error) error {
	if isReadOnlyDisk(err) {
		return nil
	}
	return err
}
