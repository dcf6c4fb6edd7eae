package sealed

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

var key = bytes.Repeat([]byte{7}, 32)

func sealedOf(t *testing.T, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, key, "name")
	if err != nil {
		t.Fatal(err)
	}
	for rest := plain; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(100_000))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil || w.Size() != int64(len(plain)) {
		t.Fatalf("%v, size %d", err, w.Size())
	}
	return out.Bytes()
}

func open(file []byte, key []byte, name string) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(file), int64(len(file)), key, name)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func random(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(rand.Uint32())
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 3*chunkSize + 5} {
		plain := random(n)
		file := sealedOf(t, plain)
		if got, err := open(file, key, "name"); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if n == 3*chunkSize+5 {
			r, err := NewReader(bytes.NewReader(file), int64(len(file)), key, "name")
			if err != nil || r.Size() != int64(n) {
				t.Fatal(err)
			}
			if err := iotest.TestReader(r, plain); err != nil {
				t.Error(err)
			}
		}
		if n > 0 && bytes.Contains(file, plain[:min(n, 64)]) && n > 8 {
			t.Error("the plain text is in the file")
		}
	}
}

func TestDamage(t *testing.T) {
	plain := random(2*chunkSize + 100)
	file := sealedOf(t, plain)
	swapped := bytes.Clone(file)
	copy(swapped[saltSize:], file[saltSize+full:saltSize+2*full])
	copy(swapped[saltSize+full:], file[saltSize:saltSize+full])
	for name, bad := range map[string][]byte{
		"empty": {}, "salt alone": file[:saltSize], "cut at a chunk": file[:saltSize+2*full], "cut": file[:len(file)-1],
		"extended": append(bytes.Clone(file), 0), "chunks swapped": swapped,
	} {
		if _, err := open(bad, key, "name"); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 50 {
		bad := bytes.Clone(file)
		bad[rand.IntN(len(bad))] ^= 1
		if _, err := open(bad, key, "name"); !errors.Is(err, ErrDamaged) {
			t.Fatalf("a bit was changed: %v", err)
		}
	}
	if _, err := open(file, bytes.Repeat([]byte{8}, 32), "name"); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: %v", err)
	}
	if _, err := open(file, key, "other"); !errors.Is(err, ErrDamaged) {
		t.Errorf("another name: %v", err)
	}
}
