// Package sealed encrypts a large file so that it can be written in one go and read from any place: AES-256-GCM over
// chunks, each bound to its place and the last one to being the last (the STREAM construction of Hoang, Reyhanitabar,
// Rogaway and Vizár, 2015). Every file has a key of its own, derived from a random salt at its beginning, so that no nonce
// is used twice.
//
// It opens no files and keeps no keys. A file that was cut, extended or changed anywhere is [ErrDamaged] when that place,
// or the end, is read.
package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	saltSize  = 32
	chunkSize = 64 << 10 // of plain text
	tagSize   = 16
	full      = chunkSize + tagSize
)

// ErrDamaged says that a file was changed or was sealed with another key.
var ErrDamaged = errors.New("the sealed file is damaged or of another key")

// seal returns the cipher of a file. name is what the file is, so that one cannot be put in the place of another.
func seal(key, salt []byte, name string) (cipher.AEAD, error) {
	own, err := hkdf.Key(sha256.New, key, salt, "sealed file|"+name, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key of file: %w", err)
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, fmt.Errorf("make cipher of file: %w", err)
	}
	return cipher.NewGCM(block)
}

func nonce(chunk int64, last bool) []byte {
	out := binary.BigEndian.AppendUint64(make([]byte, 0, 12), uint64(chunk))
	if last {
		return append(out, 0, 0, 0, 1)
	}
	return append(out, 0, 0, 0, 0)
}

// Writer seals what is written to it. Close ends the file, without which it cannot be read, and leaves the writer below
// open.
type Writer struct {
	out   io.Writer
	aead  cipher.AEAD
	plain []byte // less than a chunk, or one that may be the last
	chunk int64
	buf   []byte
	size  int64
}

// NewWriter begins a file.
func NewWriter(out io.Writer, key []byte, name string) (*Writer, error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // crashes the program rather than fail
	aead, err := seal(key, salt, name)
	if err != nil {
		return nil, err
	}
	if _, err := out.Write(salt); err != nil {
		return nil, err
	}
	return &Writer{out: out, aead: aead, plain: make([]byte, 0, chunkSize), buf: make([]byte, 0, full)}, nil
}

func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if len(w.plain) == chunkSize { // more is coming, so it is not the last
			if err := w.flush(false); err != nil {
				return written, err
			}
		}
		n := copy(w.plain[len(w.plain):chunkSize], p)
		w.plain, p = w.plain[:len(w.plain)+n], p[n:]
		written += n
		w.size += int64(n)
	}
	return written, nil
}

// Size is how much was written, before sealing.
func (w *Writer) Size() int64 { return w.size }

func (w *Writer) flush(last bool) error {
	w.buf = w.aead.Seal(w.buf[:0], nonce(w.chunk, last), w.plain, nil)
	w.chunk++
	w.plain = w.plain[:0]
	_, err := w.out.Write(w.buf)
	return err
}

// Close writes the last chunk. It must be called once.
func (w *Writer) Close() error { return w.flush(true) }

// Reader reads a sealed file from any place. It belongs to one goroutine.
type Reader struct {
	in   io.ReaderAt
	aead cipher.AEAD

	chunks, size, at int64
	have             int64 // the chunk in plain, -1 for none
	plain, buf       []byte
}

// NewReader opens a file of size bytes, sealed, of which in reads.
func NewReader(in io.ReaderAt, size int64, key []byte, name string) (*Reader, error) {
	body := size - saltSize
	chunks := (body + full - 1) / full
	if body < tagSize || body-(chunks-1)*full < tagSize {
		return nil, ErrDamaged
	}
	salt := make([]byte, saltSize)
	if _, err := in.ReadAt(salt, 0); err != nil {
		return nil, fmt.Errorf("read salt of file: %w", err)
	}
	aead, err := seal(key, salt, name)
	if err != nil {
		return nil, err
	}
	r := &Reader{in: in, aead: aead, chunks: chunks, size: body - chunks*tagSize, have: -1, buf: make([]byte, full)}
	if err := r.load(chunks - 1); err != nil { // tells a file that was cut at once
		return nil, err
	}
	return r, nil
}

// Size is the length of the plain text.
func (r *Reader) Size() int64 { return r.size }

func (r *Reader) load(chunk int64) error {
	if r.have == chunk {
		return nil
	}
	last := chunk == r.chunks-1
	buf := r.buf[:full]
	if last {
		buf = buf[:r.size-chunk*chunkSize+tagSize]
	}
	r.have = -1
	if _, err := r.in.ReadAt(buf, saltSize+chunk*full); err != nil {
		return fmt.Errorf("read sealed file: %w", err)
	}
	plain, err := r.aead.Open(buf[:0], nonce(chunk, last), buf, nil)
	if err != nil {
		return ErrDamaged
	}
	r.plain, r.have = plain, chunk
	return nil
}

func (r *Reader) Read(p []byte) (int, error) {
	if r.at >= r.size {
		return 0, io.EOF
	}
	if err := r.load(r.at / chunkSize); err != nil {
		return 0, err
	}
	n := copy(p, r.plain[r.at%chunkSize:])
	r.at += int64(n)
	return n, nil
}

// Seek implements [io.Seeker].
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning of a sealed file")
	}
	r.at = offset
	return offset, nil
}
