package api

import (
	"errors"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// While another program takes this one's place the command "serve" must not end it first.
func TestEndAwaitsRestart(t *testing.T) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
	d := &drainer{}
	d.bind(app)
	ended := make(chan error, 1)
	failed := errors.New("cannot be started")
	err := app.OnTerminate().Trigger(&core.TerminateEvent{App: app, IsRestart: true}, func(*core.TerminateEvent) error {
		go func() {
			ended <- app.OnTerminate().Trigger(&core.TerminateEvent{App: app}, func(*core.TerminateEvent) error { return nil })
		}()
		select {
		case <-ended:
			t.Error("the program ends while it is being replaced")
		case <-time.After(50 * time.Millisecond): // long enough to end in
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("%v", err)
	}
}
