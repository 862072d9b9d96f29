package spool

import "myticket/internal/intake"

// HangDisk makes the disk hang, as far as a test can: every write waits until it is released.
func (s *Spool) HangDisk() (release func()) {
	s.write.Lock()
	return s.write.Unlock
}

// Check does at once what Watch does every second.
func (s *Spool) Check() { s.check() }

// FailSync puts entries as a disk does whose fsync fails: they are in the file, and the write is reported as failed. It
// calls during between the two, and returns the path of the file.
func (s *Spool) FailSync(entries []*intake.Entry, during func(path string)) error {
	s.write.Lock()
	defer s.write.Unlock()
	values, _, err := s.active.encode(entries)
	if err != nil {
		return err
	}
	if err := s.active.append(values); err != nil {
		return err
	}
	during(s.active.name())
	s.abandon()
	return nil
}
