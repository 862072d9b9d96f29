package spool_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// bbolt panics with its locks held when both pages that name the newest transaction are lost while the file is open.
func TestSpool_OpenFileLosesItsFirstPages_TheRestIsDrained_AndNothingHangs(t *testing.T) {
	t.Parallel()
	for name, removed := range map[string]int{"a Peek finds it": 0, "a Remove finds it": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, spool.Config{Dir: dir})
			entries := numbered(t, 0, 4)
			put(t, s, entries[:3])
			peeked, err := s.Peek(10, 1<<20, none)
			require.NoError(t, err)
			loseFirstPages(t, dir)
			drained, done := 0, make(chan error, 1)
			go func() {
				var err error
				drained, err = removePutAndDrain(s, peeked[:removed], entries[3:])
				done <- err
			}()
			select {
			case err := <-done:
				require.NoError(t, err)
				require.Equal(t, len(entries)-removed, drained)
			case <-time.After(20 * time.Second):
				t.Fatal("the spool hangs")
			}
		})
	}
}

func loseFirstPages(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = file.WriteAt(make([]byte, 2*os.Getpagesize()), 0)
	require.NoError(t, err)
	require.NoError(t, file.Close())
}

// removePutAndDrain puts only after it has removed something, because only then the loss is known.
func removePutAndDrain(s *spool.Spool, remove []intake.Spooled, add []*intake.Entry) (drained int, err error) {
	if err := s.Remove(remove); err != nil {
		return 0, err
	}
	for range 3 {
		if drained > 0 || len(remove) > 0 {
			if _, err := s.Put(add); err != nil {
				return drained, err
			}
			add = nil
		}
		tickets, err := s.Peek(10, 1<<20, none)
		if err != nil {
			return drained, err
		}
		if err := s.Remove(tickets); err != nil {
			return drained, err
		}
		drained += len(tickets)
	}
	return drained, s.Close()
}
