package spool

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"myticket/internal/ticket"
)

// Glimpse is what can be seen of a folder without its lock.
type Glimpse struct {
	InUse bool // a process writes to it: only that one knows what is drained, and only Aside is set

	Tickets int       // by the structure of the files, which are not verified
	Bytes   int64     // of the files
	Oldest  time.Time // when the oldest ticket was received; zero for none
	Aside   int       // files for a person: damaged, recovered or refused
	Unknown int       // files that cannot be read now
}

// LookInto looks into a folder that a server may use or begin to use at any time. It neither takes the folder's lock nor changes
// anything. A file that a server writes to has a lock of its own, for which it waits a second; files that a server only reads can
// be read by others, too.
func LookInto(dir string) (g Glimpse, err error) {
	f := &folder{path: dir, readOnly: true}
	segments, recovered, err := f.list(slog.New(slog.DiscardHandler))
	if err != nil {
		return g, err
	}
	g.Aside = recovered
	for _, s := range segments {
		if s.damaged || s.path != s.withSuffix(suffixSegment) {
			g.Aside++
		}
	}
	for _, s := range slices.Backward(segments) { // a server writes to the newest
		if info, err := os.Stat(s.path); err == nil {
			g.Bytes += info.Size()
		}
		tickets, oldest, err := s.glimpse()
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return Glimpse{InUse: true, Aside: g.Aside}, nil
		case errors.Is(err, os.ErrNotExist): // drained meanwhile
		case err != nil:
			g.Unknown++
		case tickets > 0:
			g.Tickets += tickets
			g.Oldest = oldest
		}
	}
	return g, nil
}

// glimpse returns how many records a file says that it has, and the time of the first.
func (s *segment) glimpse() (records int, oldest time.Time, err error) {
	s.file.Lock()
	defer s.file.Unlock()
	err = s.view(func(_ *bolt.Tx, b *bolt.Bucket) error {
		c := b.Cursor()
		_, first := c.First()
		if first == nil {
			return nil
		}
		_, last := c.Last()
		r, _, err := s.nonce.decode(first)
		if err != nil {
			return err
		}
		oldest = ticket.IDTime(r.ID)
		r, _, err = s.nonce.decode(last)
		records = int(r.Sequence)
		return err
	})
	s.closeFile()
	return records, oldest, err
}
