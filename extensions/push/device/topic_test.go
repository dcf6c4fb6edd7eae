package device_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/push/device"
)

func TestTopics(t *testing.T) {
	f := start(t, func(c *pushConfig) {
		c.DeviceTopics = 3
		c.Topics = []string{"news=*", `fans:{club}=@request.auth.name = @request.query.club`, "closed="}
	})
	p := f.signIn(t, f.ada)
	join := func(status int, topic, code string) {
		t.Helper()
		if r := p.do(t, http.MethodPut, "/api/v1/push/topics/"+topic, nil); r.Status != status || r.Code() != code {
			t.Errorf("join %s: %d %s", topic, r.Status, r.Body)
		}
	}
	join(409, "news", "push.device_unregistered")
	p.want(t, 204, http.MethodDelete, "/api/v1/push/topics/news", nil)
	id := p.register(t, fcmToken)
	join(204, "news", "")
	join(204, "news", "")
	for _, topic := range []string{"fans:united", "closed", "unknown", "fans:", "fans:a%2Fb", "news%00", strings.Repeat("n", 200), "fans:x'%20OR%201=1"} {
		join(403, topic, "push.topic_denied")
	}
	f.rename(t, f.ada, "united")
	join(204, "fans:united", "")
	if got := f.reach(t, device.Audience{Topic: "fans:united"}); len(got) != 1 || got[0] != id {
		t.Errorf("reached: %v", got)
	}
	// Who may not join any more hears no more, and again if that changes.
	f.rename(t, f.ada, "city")
	if got := f.reach(t, device.Audience{Topic: "fans:united"}); len(got) != 0 {
		t.Errorf("reached: %v", got)
	}
	join(204, "fans:city", "")
	join(403, "fans:city2", "push.topic_denied")
}

func TestTopicLimit(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.DeviceTopics, c.Topics = 3, []string{"t{n}=*"} })
	p := f.signIn(t, f.ada)
	p.register(t, fcmToken)
	for i := range 3 {
		p.want(t, 204, http.MethodPut, fmt.Sprint("/api/v1/push/topics/t", i), nil)
	}
	if r := p.do(t, http.MethodPut, "/api/v1/push/topics/t3", nil); r.Status != 409 || r.Code() != "push.too_many_topics" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	p.want(t, 204, http.MethodPut, "/api/v1/push/topics/t2", nil)
	p.want(t, 204, http.MethodDelete, "/api/v1/push/topics/t2", nil)
	p.want(t, 204, http.MethodPut, "/api/v1/push/topics/t3", nil)
	body := string(p.want(t, 200, http.MethodGet, devices, nil).Body)
	if !strings.Contains(body, `"topics":["t0","t1","t3"]`) {
		t.Errorf("%s", body)
	}
}
