package store

import (
	"runtime"
	"testing"
)

func TestSpareProcessor(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	spareProcessor()
	if n := runtime.GOMAXPROCS(0); n != 2 {
		t.Errorf("%d processors", n)
	}
	t.Setenv("GOMAXPROCS", "1")
	runtime.GOMAXPROCS(1)
	spareProcessor()
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("the operator's choice became %d", n)
	}
}
