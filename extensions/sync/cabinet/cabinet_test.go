package cabinet

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	_ "github.com/pocketbase/pocketbase/core" // links the driver

	"github.com/satchelbase/satchel/extensions/sync/view"
)

func open(t *testing.T, dir, boot string) *Cabinet {
	t.Helper()
	c := New()
	c.boot = func() string { return boot }
	if err := c.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Abandon() })
	return c
}

func some() view.Stored {
	return view.Stored{State: []byte("state"), Runs: map[int64]view.StoredRun{
		1: {Fixed: []byte("f1"), Moving: []byte("m1")}, 2: {Fixed: []byte("f2"), Moving: []byte("m2")},
	}}
}

func TestStore(t *testing.T) {
	c, ctx := open(t, t.TempDir(), "boot"), t.Context()
	load := func() view.Stored {
		t.Helper()
		s, err := c.Load(ctx, "d")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := load(); s.State != nil || len(s.Runs) != 0 {
		t.Errorf("a new device has %v", s)
	}
	if err := c.Save(ctx, "d", some(), nil); err != nil {
		t.Fatal(err)
	}
	if s := load(); !reflect.DeepEqual(s, some()) {
		t.Errorf("stored %v", s)
	}
	change := view.Stored{Runs: map[int64]view.StoredRun{2: {Moving: []byte("m3")}, 3: {Fixed: []byte("f3"), Moving: []byte("m4")}}}
	if err := c.Save(ctx, "d", change, []int64{1}); err != nil {
		t.Fatal(err)
	}
	want := view.Stored{State: []byte("state"), Runs: map[int64]view.StoredRun{
		2: {Fixed: []byte("f2"), Moving: []byte("m3")}, 3: {Fixed: []byte("f3"), Moving: []byte("m4")},
	}}
	if s := load(); !reflect.DeepEqual(s, want) {
		t.Errorf("after a change: %v", s)
	}
	if n, err := c.Devices(ctx); n != 1 || err != nil {
		t.Errorf("%d devices, %v", n, err)
	}
	c.now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	load() // is a use
	if err := c.Sweep(ctx, time.Now().Add(24*time.Hour)); err != nil || load().State == nil {
		t.Errorf("a device in use is forgotten: %v", err)
	}
	if err := c.Sweep(ctx, time.Now().Add(72*time.Hour)); err != nil || load().State != nil {
		t.Errorf("an unused device is kept: %v", err)
	}
}

// Whoever makes up devices without an end drives out the own ones that were used least lately, and nobody else's.
func TestOwnersAreBounded(t *testing.T) {
	c, ctx := open(t, t.TempDir(), "boot"), t.Context()
	c.most = 3
	now := time.Now()
	c.now = func() time.Time { now = now.Add(time.Second); return now }
	save := func(device string) {
		t.Helper()
		if err := c.Save(ctx, device, some(), nil); err != nil {
			t.Fatal(err)
		}
	}
	save("b/1")
	for _, device := range []string{"a/1", "a/2", "a/3", "a/1", "a/4", "a/5", "a0"} {
		save(device)
	}
	for device, kept := range map[string]bool{"a/1": true, "a/2": false, "a/3": false, "a/4": true, "a/5": true, "b/1": true, "a0": true} {
		if s, err := c.Load(ctx, device); err != nil || (s.State != nil) != kept || (len(s.Runs) > 0) != kept {
			t.Errorf("%s: %v, %v", device, s, err)
		}
	}
}

// A file that may be older than what devices were told is not continued.
// The data folder is often named from where the program was started.
func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("pb_data", 0o700); err != nil {
		t.Fatal(err)
	}
	c := open(t, "pb_data", "boot")
	if _, err := os.Stat(filepath.Join("pb_data", File)); err != nil {
		t.Error(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTrust(t *testing.T) {
	tests := []struct {
		name  string
		leave func(c *Cabinet) error
		boot  string
		kept  bool
	}{
		{"killed", (*Cabinet).Abandon, "boot", true},
		{"closed", func(c *Cabinet) error { return c.Close(context.Background()) }, "other", true},
		{"power failure", (*Cabinet).Abandon, "other", false},
		{"nobody knows", (*Cabinet).Abandon, "", false},
		{"closed and nobody knows", func(c *Cabinet) error { return c.Close(context.Background()) }, "", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, "boot")
			if err := c.Save(t.Context(), "d", some(), nil); err != nil {
				t.Fatal(err)
			}
			nonce := c.Nonce()
			if err := test.leave(c); err != nil {
				t.Fatal(err)
			}
			again := open(t, dir, test.boot)
			s, err := again.Load(t.Context(), "d")
			if err != nil || (s.State != nil) != test.kept || (again.Nonce() == nonce) != test.kept {
				t.Errorf("kept %v, nonce %s and %s, %v", s.State != nil, nonce, again.Nonce(), err)
			}
		})
	}
}

func TestBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, File)
	if err := os.WriteFile(path, []byte("this is no database, and long enough to be looked at as if it were one"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir, "boot")
	for i := range 200 { // until the file has pages that are not in the cache
		if err := c.Save(t.Context(), string(rune('a'+i)), view.Stored{State: make([]byte, 20_000), Runs: map[int64]view.StoredRun{}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	nonce := c.Nonce()
	if err := c.Abandon(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 8192; i < len(raw); i++ {
		raw[i] = 0xff
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, "boot")
	for i := range 200 {
		_, _ = c.Load(t.Context(), string(rune('a'+i))) // some fail, and the file is replaced
	}
	if c.Nonce() == nonce {
		t.Fatal("a broken file is continued")
	}
	if err := c.Save(t.Context(), "d", some(), nil); err != nil {
		t.Errorf("after the replacement: %v", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(t.Context(), "d"); err == nil {
		t.Error("a closed file answers")
	}
}
