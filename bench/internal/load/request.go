// Package load sends prebuilt HTTP/1.1 requests over raw keep-alive connections in a closed loop and keeps what came
// back: counts, bytes and latencies. A general HTTP client would spend more of the machine than the servers under test.
package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// fetchTimeout bounds one request that is not part of a measurement.
const fetchTimeout = 30 * time.Second

// Request is one request as it goes over the wire.
type Request []byte

// Header is one header field of a request.
type Header struct{ Name, Value string }

// NewRequest builds a request for the server at addr. A body is sent as JSON; nil sends none.
func NewRequest(method, addr, path string, body []byte, headers ...Header) Request {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n", method, path, addr)
	for _, h := range headers {
		if h.Value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
		}
	}
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// Answer is a response that was read to its end.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Fetch sends one request over a connection of its own.
func Fetch(ctx context.Context, addr string, r Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	conn, err := dial(ctx, addr)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = conn.Close() }() // the answer is complete, or the error says more
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return Answer{}, fmt.Errorf("set deadline: %w", err)
		}
	}
	if _, err := conn.Write(r); err != nil {
		return Answer{}, fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return Answer{}, fmt.Errorf("read answer: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("read answer: %w", err)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn, nil
}

// readStatus reads the first line of a response.
func readStatus(r *bufio.Reader) (int, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return 0, fmt.Errorf("status line %q is too short", line)
	}
	return strconv.Atoi(string(line[9:12]))
}

// readRest reads what follows the first line and returns the size of the body. keep collects the body when it is not
// nil.
func readRest(r *bufio.Reader, status int, keep *bytes.Buffer) (size int, err error) {
	length, chunked, err := readHeader(r)
	switch {
	case err != nil:
		return 0, err
	case status == http.StatusNotModified || status == http.StatusNoContent:
		return 0, nil
	case chunked:
		return readChunks(r, keep)
	}
	return length, read(r, length, keep)
}

func readHeader(r *bufio.Reader) (length int, chunked bool, err error) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		if len(line) <= len("\r\n") {
			return length, chunked, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, false, fmt.Errorf("content length: %w", err)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked"))
		}
	}
}

func readChunks(r *bufio.Reader, keep *bytes.Buffer) (size int, err error) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return 0, fmt.Errorf("chunk size: %w", err)
		}
		if err := read(r, int(n), keep); err != nil {
			return 0, err
		}
		if _, err := r.Discard(len("\r\n")); err != nil {
			return 0, err
		}
		size += int(n)
		if n == 0 {
			return size, nil
		}
	}
}

func read(r *bufio.Reader, n int, keep *bytes.Buffer) error {
	if keep == nil {
		_, err := r.Discard(n)
		return err
	}
	_, err := io.CopyN(keep, r, int64(n))
	return err
}

// With returns a copy of the request with one more header field.
func (r Request) With(h Header) Request {
	line, rest, _ := bytes.Cut(r, []byte("\r\n"))
	return fmt.Appendf(nil, "%s\r\n%s: %s\r\n%s", line, h.Name, h.Value, rest)
}
