package spool

// HangDisk makes the disk hang, as far as a test can: whoever writes waits until it is released.
func (s *Spool) HangDisk() (release func()) {
	s.write.Lock()
	return s.write.Unlock
}
