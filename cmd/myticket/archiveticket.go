package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"myticket/internal/archive"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// fromArchive shows a ticket of the archive, and reports whether it is there. Without an archive it finds nothing, but says where
// the ticket may be.
func (c ticketsShowCmd) fromArchive(ctx context.Context, std streams, store *postgres.Store) (found bool, err error) {
	at := ticket.IDTime(c.ID)
	parts, err := store.ArchivePartsAt(ctx, at)
	if err != nil {
		return false, err
	}
	var in []archive.Part
	for _, p := range parts {
		if p.InArchive() {
			in = append(in, p)
		}
	}
	if len(in) == 0 {
		return false, nil
	}
	if c.Archive == "" {
		return false, fmt.Errorf("ticket %s: %w in this database, but its time is archived in part %s: give --archive or "+
			"MYTICKET_ARCHIVE",
			c.ID, ticket.ErrNotFound, in[0].Name)
	}
	flags := archiveFlags{Archive: c.Archive}
	if err := flags.check(); err != nil {
		return false, err
	}
	files, err := flags.archiver(ctx, std, store, uuid.Nil)
	if err != nil {
		return false, err
	}
	defer files.Bucket.Close()
	for _, p := range in {
		m, err := files.ManifestOf(ctx, p)
		if err != nil {
			return false, err
		}
		t, err := files.Ticket(ctx, m, c.ID, at)
		if err != nil || t == nil {
			if err != nil {
				return false, err
			}
			continue
		}
		all, err := files.Corrections(ctx, m)
		if err != nil {
			return false, err
		}
		return true, c.showArchived(std, p, t, all)
	}
	return false, nil
}

// archivedTicket is what a program reads.
type archivedTicket struct {
	shownTicket

	Part string `json:"archive_part"`
}

func (c ticketsShowCmd) showArchived(std streams, p archive.Part, t *archive.Ticket, all []archive.Correction) error {
	var corrections []postgres.Correction
	for _, is := range all {
		if is.TicketID != t.ID {
			continue
		}
		if c.Correction == is.Number {
			if is.Text == nil {
				return fmt.Errorf("correction %d of ticket %s has no text: it went back to what was sent", is.Number, t.ID)
			}
			_, err := std.stdout.Write(is.Text)
			return err
		}
		made := postgres.Correction{Number: is.Number, At: is.At, Who: is.Who, Why: is.Why}
		if is.Text != nil {
			n := len(is.Text)
			made.Bytes = &n
		}
		corrections = append([]postgres.Correction{made}, corrections...) // the last one first
	}
	if c.Correction != 0 {
		return fmt.Errorf("ticket %s has no correction %d", t.ID, c.Correction)
	}
	if c.Raw {
		_, err := std.stdout.Write(t.Body)
		return err
	}
	shown, err := storedOf(t)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(std.stdout, archivedTicket{
			Part: p.Name,
			shownTicket: shownTicket{
				StoredTicket: shown, Body: validText(t.Body), BodyBase64: t.Body, Text: shown.Readable(shown.Text),
				Corrections: append([]postgres.Correction{}, corrections...),
			},
		})
	}
	fmt.Fprintf(std.stderr, "This ticket is in the archive, in part %s\n", p.Name)
	return c.show(std.stdout, shown, corrections)
}

// storedOf returns a ticket of the archive as an operator sees it.
func storedOf(t *archive.Ticket) (postgres.StoredTicket, error) {
	s := postgres.StoredTicket{
		ID: t.ID, ReceivedAt: t.ReceivedAt, Source: t.Source, Status: ticket.Status(t.Status), Lines: []postgres.StoredLine{},
		Problems: []ticket.Problem{}, ContentType: t.ContentType, ParserVersion: t.ParserVersion, Dialect: t.Dialect,
		Attempts: t.Attempts, NextAttemptAt: t.NextAttemptAt, Body: t.Body, Text: t.Body,
	}
	deref := func(text *string) string {
		if text == nil {
			return ""
		}
		return *text
	}
	s.OrderNumber, s.Traceparent = deref(t.OrderNumber), deref(t.Traceparent)
	s.VAT, s.Total = json.Number(deref(t.VAT)), json.Number(deref(t.Total))
	if t.Correction != nil {
		s.Correction, s.Text = *t.Correction, t.Text
	}
	var errs []error
	for _, field := range []struct {
		text *string
		to   any
	}{{t.Problems, &s.Problems}, {t.Extra, &s.Extra}, {t.StoredLines, &s.Lines}} {
		if field.text != nil {
			errs = append(errs, json.Unmarshal([]byte(*field.text), field.to))
		}
	}
	if t.StoredLines == nil {
		for i := range t.Lines {
			line := postgres.StoredLine{
				Product: t.Lines[i].Product, ProductID: t.Lines[i].ProductID, Price: json.Number(deref(t.Lines[i].Price)),
			}
			for _, f := range t.Lines[i].Extra {
				line.Extra = append(line.Extra, postgres.StoredField(f))
			}
			s.Lines = append(s.Lines, line)
		}
	}
	return s, errors.Join(errs...)
}
