// Package bucket is the store of an archive: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage, or a
// folder.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	"gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/gcsblob" // gs://
	_ "gocloud.dev/blob/s3blob"  // s3://
	"gocloud.dev/gcerrors"
)

var (
	// ErrNotFound means that there is no such object.
	ErrNotFound = errors.New("no such object")

	// ErrChecksum means that the store gave other bytes than it was given, by its own checksum.
	ErrChecksum = errors.New("the bytes do not match the checksum that the store has of them")

	// ErrTooLarge means that an object is larger than it can have been when it was written.
	ErrTooLarge = errors.New("it is larger than it was")
)

// Bucket is a store of objects. It is safe for use by several goroutines.
type Bucket struct{ blobs *blob.Bucket }

// partBytes is how much of an object is sent at once. A store may take it in several parts.
const partBytes = 8 << 20

// schemes are those of the URL of an archive.
var schemes = []string{"s3", "gs", "azblob", "file"}

// Check reports what is wrong with the URL of an archive. It connects to nothing.
func Check(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("the URL of the archive cannot be read; it is not shown, because it may have a password in it")
	}
	if u.User != nil {
		return errors.New("the URL of the archive must not have a password in it: see docs/archive.md for where credentials go")
	}
	for _, value := range u.Query() { // such as endpoint=http://NAME:PASSWORD@HOST, which would be kept in Postgres
		if inner, err := url.Parse(value[0]); err != nil || inner.User != nil {
			return errors.New("an option in the URL of the archive must not have a password in it: see docs/archive.md for " +
				"where credentials go")
		}
	}
	for _, scheme := range schemes {
		if u.Scheme == scheme && (u.Host != "" || scheme == "file" && strings.HasPrefix(u.Path, "/")) {
			return nil
		}
	}
	return errors.New("the URL of the archive must be s3://BUCKET, gs://BUCKET, azblob://CONTAINER or file:///FOLDER, " +
		"perhaps with ?prefix=FOLDER/")
}

// Open opens a store. It makes no connection yet. Credentials are those of the environment, as the client of each cloud finds
// them. A folder must exist.
func Open(ctx context.Context, address string) (*Bucket, error) {
	if err := Check(address); err != nil {
		return nil, err
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "file" {
		return openFolder(u)
	}
	blobs, err := blob.OpenBucket(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("open the archive: %s", withoutOptions(err.Error(), u))
	}
	return &Bucket{blobs}, nil
}

// longOption is how long an option's value is from which on it may be a secret. Shorter ones are words such as true.
const longOption = 6

// withoutOptions takes the values of a URL's options out of an error of the library, which has the whole URL in it. An option
// that nobody knows may be a secret at the wrong place.
func withoutOptions(text string, u *url.URL) string {
	if u.RawQuery != "" {
		text = strings.ReplaceAll(text, u.RawQuery, "(options)")
	}
	for _, values := range u.Query() {
		for _, value := range values {
			if len(value) >= longOption {
				text = strings.ReplaceAll(strings.ReplaceAll(text, url.QueryEscape(value), "(hidden)"), value, "(hidden)")
			}
		}
	}
	return text
}

// openFolder opens a folder. What is written gets its name only when all of it is there, so a killed process leaves no half
// object.
func openFolder(u *url.URL) (*Bucket, error) {
	for name := range u.Query() {
		if name != "prefix" {
			return nil, fmt.Errorf("open the archive: a folder has no option %q; it has prefix", name)
		}
	}
	if info, err := os.Stat(u.Path); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("open the archive: %s is no folder: make it, or mount it", u.Path)
	}
	blobs, err := fileblob.OpenBucket(u.Path, &fileblob.Options{Metadata: fileblob.MetadataDontWrite, NoTempDir: true})
	if err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	if prefix := u.Query().Get("prefix"); prefix != "" {
		blobs = blob.PrefixedBucket(blobs, prefix)
	}
	return &Bucket{blobs}, nil
}

// Close ends its connections.
func (b *Bucket) Close() error { return b.blobs.Close() }

// Put writes an object. If fresh, it fails if there is one with that key, where the store can tell. When it returns nil, the
// store says that it has the object.
func (b *Bucket) Put(ctx context.Context, key string, content io.Reader, fresh bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // so an upload that fails is given up, and not completed by Close
	kind := "application/vnd.apache.parquet"
	if strings.HasSuffix(key, ".json") {
		kind = "application/json"
	}
	w, err := b.blobs.NewWriter(ctx, key, &blob.WriterOptions{
		BufferSize: partBytes, MaxConcurrency: 2, ContentType: kind, IfNotExist: fresh,
	})
	if err != nil {
		return explain("write", key, err)
	}
	if _, err := io.Copy(w, content); err != nil {
		cancel()
		_ = w.Close()
		return explain("write", key, err)
	}
	return explain("write", key, w.Close())
}

// Get copies an object of at most so many bytes, and returns its size. Of a larger one it copies hardly more, and returns
// ErrTooLarge.
func (b *Bucket) Get(ctx context.Context, key string, to io.Writer, most int64) (int64, error) {
	r, err := b.blobs.NewReader(ctx, key, nil)
	if err != nil {
		return 0, explain("read", key, err)
	}
	defer r.Close()
	if r.Size() > most {
		return 0, explain("read", key, ErrTooLarge)
	}
	n, err := io.Copy(to, io.LimitReader(r, most+1)) // a store may say another size than it sends
	if err == nil && n > most {
		err = ErrTooLarge
	}
	return n, explain("read", key, err)
}

// Delete deletes an object. One that is not there is no error.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := explain("delete", key, b.blobs.Delete(ctx, key))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// List calls do with each key that begins with a prefix.
func (b *Bucket) List(ctx context.Context, prefix string, do func(key string, size int64, at time.Time) error) error {
	list := b.blobs.List(&blob.ListOptions{Prefix: prefix})
	for {
		object, err := list.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return explain("list", prefix, err)
		}
		if err := do(object.Key, object.Size, object.ModTime); err != nil {
			return err
		}
	}
}

func explain(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%s %s in the archive: %w", doing, key, ErrNotFound)
	}
	if strings.Contains(err.Error(), "checksum did not match") { // the client of S3 does not export a type for it
		return fmt.Errorf("%s %s in the archive: %w: %w", doing, key, ErrChecksum, err)
	}
	var coded interface{ ErrorCode() string } // the errors of the clients of S3
	if errors.As(err, &coded) && strings.HasPrefix(coded.ErrorCode(), "RequestTimeTooSkewed") {
		return fmt.Errorf("%s %s in the archive: the clocks of this machine and of the store differ by so much that the store refuses "+
			"everything: set them by NTP: %w", doing, key, err)
	}
	return fmt.Errorf("%s %s in the archive: %w", doing, key, err)
}
