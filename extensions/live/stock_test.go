package live_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"

	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

// told is the data of a record's message in the stock contract.
type told struct {
	Action string
	Record map[string]any
}

func (st *stream) told(t testing.TB, topic string) told {
	t.Helper()
	e := st.next(t)
	var out told
	if err := json.Unmarshal([]byte(e[1]), &out); err != nil || e[0] != topic {
		t.Fatalf("%v, want %s", e, topic)
	}
	return out
}

// topic is a topic with options as the SDK writes it.
func topic(name string, query map[string]string) string {
	raw, err := json.Marshal(map[string]any{"query": query})
	if err != nil {
		panic(err)
	}
	return name + "?options=" + url.QueryEscape(string(raw))
}

func TestStockContract(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	var sent atomic.Int32
	s.OnRealtimeMessageSend().BindFunc(func(e *core.RealtimeMessageEvent) error {
		sent.Add(1)
		return e.Next()
	})
	mine, guest := s.stream("/api/realtime"), s.stream("/api/v1/realtime")
	expanded := topic("posts/*", map[string]string{"expand": "owner", "fields": "id,expand.owner.id", "filter": "n > 1"})
	s.subscribe(mine, token, "notes/*", expanded)
	s.subscribe(guest, "", "notes/*")
	note := s.record("notes", map[string]any{"title": "one", "owner": ada.Id})
	if m := mine.told(t, "notes/*"); m.Action != "create" || m.Record["id"] != note.Id || m.Record["title"] != "one" || m.Record["hush"] != nil {
		t.Errorf("%+v", m)
	}
	s.record("posts", map[string]any{"owner": ada.Id, "n": 1})
	post := s.record("posts", map[string]any{"owner": ada.Id, "n": 2})
	m := mine.told(t, expanded)
	if want := fmt.Sprintf("map[expand:map[owner:map[id:%s]] id:%s]", ada.Id, post.Id); fmt.Sprint(m.Record) != want {
		t.Errorf("%v, want %s", m.Record, want)
	}
	s.subscribe(mine, token, "notes/*", "posts/"+post.Id)
	s.remove(note)
	if m := mine.told(t, "notes/*"); m.Action != "delete" || m.Record["title"] != "one" {
		t.Errorf("%+v", m)
	}
	s.set(post, map[string]any{"title": "p"})
	if m := mine.told(t, "posts/"+post.Id); m.Action != "update" || m.Record["title"] != "p" {
		t.Errorf("%+v", m)
	}
	if len(guest.events) != 0 {
		t.Errorf("a guest was told %v", <-guest.events)
	}
	if sent.Load() < 5 {
		t.Errorf("the hook on messages ran %d times", sent.Load())
	}
	for name, c := range map[string]struct {
		token string
		body  map[string]any
		want  int
	}{
		"unknown client":  {token, map[string]any{"clientId": "nope", "subscriptions": []string{"notes/*"}}, http.StatusNotFound},
		"another account": {"", map[string]any{"clientId": mine.id, "subscriptions": []string{"notes/*"}}, http.StatusForbidden},
		"no client":       {token, map[string]any{"subscriptions": []string{"notes/*"}}, http.StatusBadRequest},
	} {
		if status, body := s.post("/api/realtime", c.token, c.body); status != c.want {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

// PocketBase's broker knows those with other topics only, so that its own broadcast finds nobody; messages of hooks arrive.
func TestBroker(t *testing.T) {
	s := start(t)
	st := s.stream("/api/realtime")
	broker := s.SubscriptionsBroker()
	s.subscribe(st, "", "posts/*")
	if n := broker.TotalClients(); n != 0 {
		t.Errorf("%d clients in the broker", n)
	}
	s.subscribe(st, "", "posts/*", "@oauth2", "chat")
	client, err := broker.ClientById(st.id)
	if err != nil || !client.HasSubscription("@oauth2") || len(client.Subscriptions("posts/")) != 0 || len(client.Subscriptions("chat")) != 1 || len(client.Subscriptions()) != 3 {
		t.Fatalf("%v %v", client.Subscriptions(), err)
	}
	client.Send(subscriptions.Message{Name: "chat", Data: []byte(`{"hello":1}`)})
	if e := st.next(t); e != [2]string{"chat", `{"hello":1}`} {
		t.Errorf("%v", e)
	}
	s.record("posts", map[string]any{"title": "once"})
	st.told(t, "posts/*")
	client.Unsubscribe("@oauth2")
	client.Unsubscribe("chat")
	if n := broker.TotalClients(); n != 0 {
		t.Errorf("%d clients in the broker", n)
	}
	s.record("posts", map[string]any{"title": "twice"})
	if m := st.told(t, "posts/*"); m.Record["title"] != "twice" {
		t.Errorf("%+v", m)
	}
	s.subscribe(st, "", "chat")
	broker.Unregister(st.id)
	select {
	case <-st.closed:
	case <-time.After(patience):
		t.Error("a client that was taken out of the broker is still connected")
	}
}

// The hooks of a connection run, may refuse it, and hold the client that is served.
func TestConnectHooks(t *testing.T) {
	s := start(t)
	refuse := false
	s.OnRealtimeConnectRequest().BindFunc(func(e *core.RealtimeConnectRequestEvent) error {
		if refuse {
			return e.ForbiddenError("not today", nil)
		}
		e.Client.Set("greeting", "hi")
		return e.Next()
	})
	st := s.stream("/api/realtime")
	s.subscribe(st, "", "chat")
	client, err := s.SubscriptionsBroker().ClientById(st.id)
	if err != nil || client.Get("greeting") != "hi" {
		t.Errorf("%v", err)
	}
	refuse = true
	if status, _ := s.do(http.MethodGet, "/api/realtime", "", nil); status != http.StatusForbidden {
		t.Errorf("%d", status)
	}
}

// The contract over a WebSocket.
func TestShim(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	ws, _, err := websocket.Dial(t.Context(), s.addr+"/api/v1/live", &websocket.DialOptions{Subprotocols: []string{"satchel.sse.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	read := func() (out struct{ Event, ID, Data string }) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, raw, err := ws.Read(ctx)
		if err == nil {
			err = json.Unmarshal(raw, &out)
		}
		if err != nil {
			t.Fatalf("%v %s", err, raw)
		}
		return out
	}
	hello := read()
	if hello.Event != "PB_CONNECT" || hello.Data != `{"clientId":"`+hello.ID+`"}` {
		t.Fatalf("%+v", hello)
	}
	s.subscribe(&stream{id: hello.ID}, token, "notes/*")
	s.record("notes", map[string]any{"owner": ada.Id, "title": "by socket"})
	if m := read(); m.Event != "notes/*" || m.ID != hello.ID || !strings.Contains(m.Data, `"title":"by socket"`) {
		t.Errorf("%+v", m)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.down()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != frame.CloseRestart {
		t.Errorf("%v", err)
	}
	<-stopped
}

func TestLimitsOnConnections(t *testing.T) {
	s := start(t, func(c *live.Config, _ *live.Deps) { c.UserConnections, c.GuestConnections, c.Connections = 2, 3, 6 })
	_, token := s.user("ada")
	_, other := s.user("eve")
	s.connect(token)
	s.connect(token)
	third := s.dial()
	third.send(map[string]any{"type": "auth", "token": token})
	third.ends(frame.CloseLimit)
	s.connect(other)
	for range 3 {
		s.connect("")
	}
	full := s.dial()
	full.ends(frame.CloseLimit)
	if status, body := s.do(http.MethodGet, "/api/realtime", "", nil); status != http.StatusTooManyRequests {
		t.Errorf("%d %s", status, body)
	}
}

func TestLimitsOnFrames(t *testing.T) {
	s := start(t, func(c *live.Config, _ *live.Deps) { c.Frames = 2 })
	p := s.connect("")
	ctx := context.Background()
	for range 30 {
		if p.ws.Write(ctx, websocket.MessageText, []byte(`{"type":"ping"}`)) != nil {
			break
		}
	}
	p.ends(frame.CloseLimit)
	big := s.connect("")
	_ = big.ws.Write(ctx, websocket.MessageText, []byte(`{"type":"ping","id":"`+strings.Repeat("x", frame.MaxBytes)+`"}`))
	big.ends(int(websocket.StatusMessageTooBig))
}

func TestChannels(t *testing.T) {
	everybody := ""
	s := start(t, func(c *live.Config, d *live.Deps) {
		c.Channels = []string{"+team:{id}=@collection.teams.id ?= @request.query.id && @collection.teams.members.id ?= @request.auth.id|>@request.auth.role = 'chief'"}
		d.Channels = []channel.Channel{{Pattern: "lobby", Join: &everybody, Publish: &everybody}}
	})
	ada, token := s.user("ada")
	eve, other := s.user("eve")
	team := s.record("teams", map[string]any{"members": []string{ada.Id}})
	s.set(eve, map[string]any{"role": "chief"})
	a, b := s.connect(token), s.connect(other)
	channel := map[string]any{"channel": "team:" + team.Id, "state": map[string]any{"at": "home"}}
	if got := a.sub("t", channel); len(got.Members) != 1 || got.Members[0].User.ID != ada.Id {
		t.Fatalf("%+v", got)
	}
	b.send(map[string]any{"type": "sub", "sub": "t", "channel": "team:" + team.Id})
	if e := b.next("error"); e.Code != "live.denied" {
		t.Fatalf("%+v", e)
	}
	s.set(team, map[string]any{"members": []string{ada.Id, eve.Id}})
	if got := b.sub("mine", channel); len(got.Members) != 2 {
		t.Fatalf("%+v", got)
	}
	if p := a.next("presence"); p.Sub != "t" || len(p.Joined) != 1 || p.Joined[0].User.ID != eve.Id || string(p.Joined[0].State) != `{"at":"home"}` {
		t.Fatalf("%+v", p)
	}
	b.send(map[string]any{"type": "presence", "sub": "mine", "state": "away"})
	if p := a.next("presence"); string(p.Joined[0].State) != `"away"` {
		t.Fatalf("%+v", p)
	}
	b.send(map[string]any{"type": "publish", "sub": "mine", "data": map[string]any{"x": 1}})
	if m := a.next("message"); m.Sub != "t" || string(m.Data) != `{"x":1}` || m.From.User.ID != eve.Id {
		t.Fatalf("%+v", m)
	}
	a.send(map[string]any{"type": "publish", "sub": "t", "data": 1})
	if e := a.next("error"); e.Code != "live.denied" {
		t.Fatalf("%+v", e)
	}
	if n, err := s.hub.Publish("team:"+team.Id, "from the server"); err != nil || n != 2 {
		t.Fatalf("%d %v", n, err)
	}
	for _, p := range []*phone{a, b} {
		if m := p.next("message"); m.From != nil || string(m.Data) != `"from the server"` {
			t.Fatalf("%+v", m)
		}
	}
	// Whoever may not join any more is put out.
	s.set(eve, map[string]any{"role": "chief", "name": "Eve"}) // an account that changes is looked at at once
	s.set(team, map[string]any{"members": []string{ada.Id}})
	s.set(eve, map[string]any{"name": "Evelyn"})
	if e := b.next("error"); e.Code != "live.denied" || e.Sub != "mine" {
		t.Fatalf("%+v", e)
	}
	if p := a.next("presence"); len(p.Left) != 1 {
		t.Fatalf("%+v", p)
	}
	s.set(team, map[string]any{"members": []string{ada.Id, eve.Id}})
	b.sub("mine", channel)
	a.next("presence")

	b.send(map[string]any{"type": "unsub", "sub": "mine"})
	b.next("unsub")
	if p := a.next("presence"); len(p.Left) != 1 || p.Left[0].User.ID != eve.Id {
		t.Fatalf("%+v", p)
	}
	guest := s.connect("")
	guest.sub("l", map[string]any{"channel": "lobby"})
	a.sub("l", map[string]any{"channel": "lobby"})
	guest.send(map[string]any{"type": "publish", "sub": "l", "data": "hi"})
	if m := a.next("message"); string(m.Data) != `"hi"` || m.From.User != nil {
		t.Fatalf("%+v", m)
	}
}

func TestRestartClosesConnections(t *testing.T) {
	s := start(t)
	p, st := s.connect(""), s.stream("/api/realtime")
	s.down()
	p.ends(frame.CloseRestart)
	select {
	case <-st.closed:
	case <-time.After(patience):
		t.Error("the stream is still open")
	}
}

// A client that is told twice at the same time what it subscribes to goes on from where it was.
func TestSubscribingTwiceLosesNothing(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	st := s.stream("/api/realtime")
	for i := range 30 {
		var twice sync.WaitGroup
		for range 2 {
			twice.Go(func() { s.subscribe(st, token, "notes/*", fmt.Sprint("posts/", i)) })
		}
		s.record("notes", map[string]any{"owner": ada.Id, "n": i})
		twice.Wait()
		if i == 0 { // it may have been there before the subscription
			s.subscribe(st, token, "notes/*", "posts/0")
			s.record("notes", map[string]any{"owner": ada.Id, "n": -1})
			for st.told(t, "notes/*").Record["n"] != -1.0 {
			}
			continue
		}
		if m := st.told(t, "notes/*"); m.Record["n"] != float64(i) {
			t.Fatalf("%+v, want %d", m, i)
		}
	}
}

// A stream lives longer than the server lets requests take, in either direction.
func TestStreamsOutliveRequests(t *testing.T) {
	const limit = 3 * time.Second
	s := startLimited(t, limit)
	st, p := s.stream("/api/realtime"), s.connect("")
	s.subscribe(st, "", "posts/*")
	p.sub("p", map[string]any{"collection": "posts"})
	select {
	case <-st.closed:
		t.Fatal("the stream has ended")
	case <-p.closed:
		t.Fatal("the connection has ended")
	case <-time.After(limit + time.Second):
	}
	s.record("posts", map[string]any{"title": "late"})
	if m := st.told(t, "posts/*"); m.Record["title"] != "late" {
		t.Errorf("%+v", m)
	}
	if m := p.next("event"); m.Record["title"] != "late" {
		t.Errorf("%+v", m)
	}
}
