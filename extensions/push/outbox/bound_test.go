package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// What dies with the process is sent again: a hundred pushes for a worker at most, also while results cannot be written.
func TestUnwritten(t *testing.T) {
	const devices, bound = 300, 100
	f := start(t, options{})
	user, _ := f.User(t, "many@example.test")
	list := make([]spec, devices)
	for i := range list {
		list[i] = spec{id: fmt.Sprintf("d%04d", i), user: user.Id, token: token("", i+1)}
	}
	f.devices(t, list...)
	f.apns.Production.SetLatency(20 * time.Millisecond)
	sent := f.send(t, m{"to": m{"all": true}, "title": "Hello"})
	await(t, "the first push", func() bool { return f.apns.Production.Requests() > 0 })
	err := f.RunInTransaction(func(core.App) error { // nobody else writes now
		written := row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state <> 0")
		most := min(written+bound, devices)
		await(t, "as many pushes as may be sent again", func() bool { return f.apns.Production.Requests() >= most })
		time.Sleep(100 * time.Millisecond) // one more would come by now
		if n := f.apns.Production.Requests(); n != most {
			t.Errorf("%d pushes are sent and %d results written, want %d more", n, written, bound)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := f.done(t, sent.ID); got.Accepted != devices || f.apns.Production.Requests() != devices {
		t.Errorf("%+v, %d requests", got, f.apns.Production.Requests())
	}
}
