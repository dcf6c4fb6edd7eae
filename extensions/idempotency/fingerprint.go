package idempotency

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
)

// fingerprint tells requests apart: method, canonical path, query, content type and body. Of a multipart body the
// boundary does not count, which clients draw anew for each attempt, and neither does the order of fields. It is keyed by
// the idempotency key, which is stored nowhere, so that nobody who reads the table can try passwords against it. The body
// can be read again afterwards.
func fingerprint(e *core.RequestEvent, key string) ([]byte, error) {
	if e.Request.ContentLength > maxBody {
		return nil, tooLong()
	}
	h := hmac.New(sha256.New, []byte(key))
	contentType := e.Request.Header.Get("Content-Type")
	media, params, err := mime.ParseMediaType(contentType)
	if err == nil {
		delete(params, "boundary")
		contentType = mime.FormatMediaType(media, params)
	}
	for _, part := range []string{e.Request.Method, e.Request.URL.Path, e.Request.URL.RawQuery, contentType} {
		write(h, part)
	}
	body := e.Request.Body
	if body == nil {
		return h.Sum(nil), nil
	}
	e.Request.Body = http.MaxBytesReader(nil, body, maxBody)
	if media == "multipart/form-data" {
		err = hashForm(h, e.Request)
	} else if _, err = io.Copy(h, e.Request.Body); err != nil {
		err = unreadable(err)
	}
	e.Request.Body = body
	if err != nil {
		return nil, err
	}
	if r, ok := body.(router.Rereader); ok {
		r.Reread()
	}
	return h.Sum(nil), nil
}

// hashForm leaves the parsed form in the request, where handlers look for it. What is allowed fits in memory.
func hashForm(h hash.Hash, r *http.Request) error {
	if err := r.ParseMultipartForm(router.DefaultMaxMemory); err != nil {
		return unreadable(err)
	}
	for _, name := range slices.Sorted(maps.Keys(r.MultipartForm.Value)) {
		for _, value := range r.MultipartForm.Value[name] {
			write(h, "value")
			write(h, name)
			write(h, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.MultipartForm.File)) {
		for _, file := range r.MultipartForm.File[name] {
			write(h, "file")
			write(h, name)
			write(h, file.Filename)
			write(h, file.Header.Get("Content-Type"))
			sum, err := hashFile(file)
			if err != nil {
				return err
			}
			_, _ = h.Write(sum)
		}
	}
	return nil
}

func hashFile(file *multipart.FileHeader) ([]byte, error) {
	content, err := file.Open()
	if err != nil {
		return nil, fmt.Errorf("open part: %w", err)
	}
	defer func() { _ = content.Close() }() // it is memory
	h := sha256.New()
	if _, err := io.Copy(h, content); err != nil {
		return nil, fmt.Errorf("read part: %w", err)
	}
	return h.Sum(nil), nil
}

// write adds a text so that no two lists of texts are the same.
func write(h hash.Hash, text string) {
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(text)))
	_, _ = h.Write(size[:])
	_, _ = io.WriteString(h, text)
}

// unreadable tells a body that is too long, here or for its route, from one that is broken.
func unreadable(err error) error {
	var limit *http.MaxBytesError
	if errors.As(err, &limit) && limit.Limit == maxBody {
		return tooLong().Because(err)
	}
	var stock *router.ApiError
	if errors.As(err, &limit) || errors.As(err, &stock) {
		return err
	}
	return api.Fail(api.ErrBodyMalformed, "the body cannot be read").Because(err)
}

func tooLong() *api.Problem {
	return api.Fail(api.ErrBodyTooLarge, "a request with an Idempotency-Key has at most 8 MiB")
}
