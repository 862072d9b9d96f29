package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/gofrs/flock"
	"github.com/google/uuid"
)

// sendJournal is the file of --resume: JSON lines, the first of which names the run and where it sends to. Each other line is a
// ticket that is known to be stored. A ticket's idempotency key follows from the run and from what is sent. So a ticket that was
// stored without a line here has the same key in the next run, and the server stores it once. A nil journal remembers nothing.
type sendJournal struct {
	journalHead
	lock *flock.Flock
	file *os.File
	done map[uuid.UUID]journalLine
}

type journalHead struct {
	Run uuid.UUID `json:"run"`
	URL string    `json:"url"`
}

type journalLine struct {
	File   string    `json:"file"`
	Key    uuid.UUID `json:"key"`
	ID     string    `json:"id"`
	Status string    `json:"status"`
}

// openSendJournal goes on with a file, or begins one that is not there or is empty.
func openSendJournal(path, url string) (j *sendJournal, err error) {
	j = &sendJournal{lock: flock.New(path, flock.SetPermissions(0o600)), done: map[uuid.UUID]journalLine{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("--resume %s: %w", path, err), j.close())
		}
	}()
	switch ok, err := j.lock.TryLock(); {
	case err != nil:
		return j, err
	case !ok:
		return j, errors.New("another run is using it")
	}
	if j.file, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0); err != nil {
		return j, err
	}
	if info, err := j.file.Stat(); err != nil || info.Size() == 0 {
		j.journalHead = journalHead{uuid.New(), url}
		return j, errors.Join(err, j.write(j.journalHead))
	}
	if err := j.read(); err != nil {
		return j, err
	}
	if j.URL != url {
		return j, fmt.Errorf("it is of a run that sends to %s: give that --url, or another file", printable(j.URL))
	}
	return j, nil
}

// read reads the file. The end of a line that was being written when the machine stopped is cut off.
func (j *sendJournal) read() error {
	reader, whole := bufio.NewReaderSize(j.file, 64<<10), int64(0)
	for n := 1; ; n++ {
		text, err := reader.ReadSlice('\n')
		if errors.Is(err, io.EOF) && n > 1 {
			return j.file.Truncate(whole)
		}
		var line journalLine
		if n == 1 {
			err = errors.Join(err, json.Unmarshal(text, &j.journalHead))
		} else {
			err = errors.Join(err, json.Unmarshal(text, &line))
		}
		switch {
		case err != nil || j.Run == uuid.Nil || n > 1 && line.Key == uuid.Nil:
			return errors.Join(fmt.Errorf("line %d is not of a run of myticket send: name the file of one, or a new file", n), err)
		case n > 1:
			j.done[line.Key] = line
		}
		whole += int64(len(text))
	}
}

func (j *sendJournal) write(line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	_, err = j.file.Write(append(text, '\n'))
	return err
}

// key returns the idempotency key of a copy of a file. It depends on where the file is and what it contains: a file that has
// changed is another ticket.
func (j *sendJournal) key(f file, copied int) uuid.UUID {
	if j == nil {
		return uuid.New()
	}
	sum := sha256.Sum256(f.body)
	return uuid.NewSHA1(j.Run, append(sum[:], strconv.Itoa(copied)+" "+f.path...))
}

// before returns what became of a ticket in a run before.
func (j *sendJournal) before(key uuid.UUID) (s sentTicket, ok bool) {
	if j == nil {
		return s, false
	}
	line, ok := j.done[key]
	return sentTicket{File: line.File, ID: line.ID, Status: line.Status, Before: ok}, ok
}

// add remembers a ticket that is stored.
func (j *sendJournal) add(s sentTicket) error {
	if j == nil || s.Before || s.Error != "" {
		return nil
	}
	if err := j.write(journalLine{s.File, s.key, s.ID, s.Status}); err != nil {
		return fmt.Errorf("--resume: a ticket is stored, and this cannot be written down; nothing more is sent: %w", err)
	}
	return nil
}

func (j *sendJournal) close() error {
	if j == nil {
		return nil
	}
	if j.file != nil {
		return errors.Join(j.file.Close(), j.lock.Close())
	}
	return j.lock.Close()
}
