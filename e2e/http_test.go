package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	t.Parallel()
	s := start(t)

	stock := s.do(t, request{Path: "/api/health"})
	if want := `{"message":"API is healthy.","code":200,"data":{}}`; stock.Status != http.StatusOK || strings.TrimSpace(string(stock.Body)) != want {
		t.Errorf("stock health: %d %s, want %s", stock.Status, stock.Body, want)
	}
	for _, path := range []string{"/api/v1/health/live", "/api/v1/health/ready", "/api/v1/health", "/health"} {
		get := s.do(t, request{Path: path})
		if get.Status != http.StatusOK || get.json(t)["success"] != true {
			t.Errorf("%s: %d %s", path, get.Status, get.Body)
		}
		head := s.do(t, request{Method: http.MethodHead, Path: path})
		if head.Status != http.StatusOK || len(head.Body) != 0 {
			t.Errorf("HEAD %s: %d %q", path, head.Status, head.Body)
		}
	}
	data, _ := s.do(t, request{Path: "/api/v1/health"}).json(t)["data"].(map[string]any)
	for _, member := range []string{"status", "database", "time", "version"} {
		if data[member] == nil {
			t.Errorf("health has no %s: %v", member, data)
		}
	}
	admin, _ := s.do(t, request{Path: "/api/v1/health", Token: s.superuser(t)}).json(t)["data"].(map[string]any)
	for _, member := range []string{"uptimeSeconds", "memory", "checks"} {
		if data[member] != nil || admin[member] == nil {
			t.Errorf("%s is for admins only: public %v, admin %v", member, data[member], admin[member])
		}
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	s := start(t)
	const own = "0b9f1c66-5a3e-4a53-9d0e-6f1f6f1f6f1f"
	for _, path := range []string{"/api/v1/health", "/api/health", "/api/v1/nothing", "/api/v1/collections/nothing/records", "/"} {
		answer := s.do(t, request{Path: path, Header: map[string]string{"X-Request-Id": own}})
		answer.assertHeader(t, "X-Request-Id", own)
		if id := answer.Header.Values("X-Request-Id"); len(id) != 1 {
			t.Errorf("%s: request ids %v", path, id)
		}
	}
	problem := s.do(t, request{Path: "/api/v1/nothing", Header: map[string]string{"X-Request-Id": own}})
	problem.assertProblem(t, http.StatusNotFound, "api.not_found")
	problem.assertHeader(t, "Content-Type", "application/problem+json")
	if got := problem.text(t, "requestId"); got != own {
		t.Errorf("requestId of the problem is %q, want %q", got, own)
	}
	for _, bad := range []string{"short", "with space in it", `"><script>alert(1)</script>`, strings.Repeat("a", 65)} {
		got := s.do(t, request{Path: "/api/v1/health", Header: map[string]string{"X-Request-Id": bad}}).Header.Get("X-Request-Id")
		if got == bad || len(got) < 8 {
			t.Errorf("request id %q was answered with %q", bad, got)
		}
	}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	id, token := s.user(t, "gzip@example.com")
	for i := range 10 {
		note := map[string]any{"owner": id, "title": fmt.Sprint("note ", i), "body": strings.Repeat("lorem ipsum ", 40)}
		s.do(t, request{Method: http.MethodPost, Path: "/api/v1/collections/notes/records", Token: token, JSON: note}).assertStatus(t, http.StatusOK)
	}
	accept := map[string]string{"Accept-Encoding": "gzip"}
	for _, path := range []string{"/api/v1/records/notes", "/api/v1/collections/notes/records", "/api/collections/notes/records"} {
		plain := s.do(t, request{Path: path, Token: token, Header: map[string]string{"Accept-Encoding": "identity"}})
		plain.assertHeader(t, "Content-Encoding", "")
		small := s.do(t, request{Path: path, Token: token, Header: accept})
		small.assertHeader(t, "Content-Encoding", "gzip")
		if !strings.Contains(strings.Join(small.Header.Values("Vary"), ","), "Accept-Encoding") {
			t.Errorf("%s: Vary is %q", path, small.Header.Values("Vary"))
		}
		r, err := gzip.NewReader(bytes.NewReader(small.Body))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		unpacked, err := io.ReadAll(r)
		if err != nil || !bytes.Contains(unpacked, []byte("note 9")) || len(small.Body)*3 > len(plain.Body) {
			t.Errorf("%s: %d bytes packed, %d plain, %v", path, len(small.Body), len(plain.Body), err)
		}
	}
	s.do(t, request{Path: "/api/v1/health", Header: accept}).assertHeader(t, "Content-Encoding", "")
	// A token beside what the client sent must not be compressed with it.
	auth := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-refresh", Token: token, Header: accept})
	auth.assertStatus(t, http.StatusOK)
	auth.assertHeader(t, "Content-Encoding", "")
	auth.assertHeader(t, "Cache-Control", "no-store")
}

func TestCORS(t *testing.T) {
	t.Parallel()
	preflight := func(s *server, origin, path string) response {
		return s.do(t, request{Method: http.MethodOptions, Path: path, Header: map[string]string{
			"Origin": origin, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization,content-type,x-app-version",
		}})
	}
	open := start(t)
	for _, path := range []string{"/api/v1/records/notes", "/api/v1/collections/notes/records/abc", "/api/collections/notes/records/abc"} {
		answer := preflight(open, "https://app.example.com", path)
		answer.assertStatus(t, http.StatusNoContent)
		answer.assertHeader(t, "Access-Control-Allow-Origin", "*")
		if methods := answer.Header.Get("Access-Control-Allow-Methods"); !strings.Contains(methods, "PATCH") {
			t.Errorf("%s: methods %q", path, methods)
		}
		if headers := answer.Header.Get("Access-Control-Allow-Headers"); !strings.Contains(headers, "x-app-version") {
			t.Errorf("%s: headers %q", path, headers)
		}
		if age := answer.Header.Get("Access-Control-Max-Age"); age == "" || age == "0" {
			t.Errorf("%s: a preflight before every request, Access-Control-Max-Age %q", path, age)
		}
	}
	actual := open.do(t, request{Path: "/api/v1/health", Header: map[string]string{"Origin": "https://app.example.com"}})
	exposed := strings.ToLower(actual.Header.Get("Access-Control-Expose-Headers"))
	for _, name := range []string{"etag", "x-request-id", "ratelimit", "ratelimit-policy", "retry-after", "deprecation", "sunset", "location"} {
		if !strings.Contains(","+strings.ReplaceAll(exposed, " ", "")+",", ","+name+",") {
			t.Errorf("%s is not exposed: %q", name, exposed)
		}
	}

	closed := start(t, "SATCHEL_API_CORS_ORIGINS=https://app.example.com,https://admin.example.com")
	preflight(closed, "https://admin.example.com", "/api/v1/health").assertHeader(t, "Access-Control-Allow-Origin", "https://admin.example.com")
	preflight(closed, "https://evil.example.com", "/api/v1/health").assertHeader(t, "Access-Control-Allow-Origin", "")
}

func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	realIP := func(s *server, token, forwarded string) string {
		answer := s.do(t, request{Path: "/api/health", Token: token, Header: map[string]string{"X-Forwarded-For": forwarded}})
		data, _ := answer.json(t)["data"].(map[string]any)
		ip, _ := data["realIP"].(string)
		return ip
	}
	direct := start(t, relaxed()...)
	if got := realIP(direct, direct.superuser(t), "203.0.113.9"); got != "127.0.0.1" {
		t.Errorf("a client that is no proxy chose its address: %s", got)
	}
	behind := start(t, relaxed("SATCHEL_API_TRUSTED_PROXIES=127.0.0.0/8,10.0.0.0/8")...)
	token := behind.superuser(t)
	for forwarded, want := range map[string]string{
		"203.0.113.9":                      "203.0.113.9",
		"198.51.100.1, 203.0.113.9":        "203.0.113.9",
		"1.2.3.4, 203.0.113.9, 10.1.2.3":   "203.0.113.9",
		"2001:db8::7":                      "2001:0db8:0000:0000:0000:0000:0000:0007", // as PocketBase writes addresses
		"not an address":                   "127.0.0.1",
		"203.0.113.9, not an address":      "127.0.0.1",
		"203.0.113.9:4711":                 "203.0.113.9",
		"":                                 "127.0.0.1",
		"127.0.0.1":                        "127.0.0.1",
		"198.51.100.1,203.0.113.9,10.1.1.": "127.0.0.1",
	} {
		if got := realIP(behind, token, forwarded); got != want {
			t.Errorf("X-Forwarded-For %q: %s, want %s", forwarded, got, want)
		}
	}
}

func TestHTTP2WithoutTLS(t *testing.T) {
	t.Parallel()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // and nothing else: prior knowledge
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: 10 * time.Second}

	on := start(t, "SATCHEL_API_H2C=true")
	answer, err := on.try(t.Context(), client, request{Path: "/api/v1/health"})
	if err != nil || answer.Status != http.StatusOK || answer.Proto != "HTTP/2.0" {
		t.Errorf("HTTP/2: %s %d %v", answer.Proto, answer.Status, err)
	}
	if answer = on.do(t, request{Path: "/api/v1/health"}); answer.Proto != "HTTP/1.1" {
		t.Errorf("HTTP/1.1 clients got %s", answer.Proto)
	}
	client.CloseIdleConnections()

	off := start(t)
	if answer, err = off.try(t.Context(), client, request{Path: "/api/v1/health"}); err == nil {
		t.Errorf("HTTP/2 without the setting: %s %d", answer.Proto, answer.Status)
	}
}

func TestAppVersionGate(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed("SATCHEL_API_MIN_VERSION=1.4.0,ios=2.0.0", "SATCHEL_API_STORE_URL=https://store.example.com/app")...)
	_, token := s.user(t, "old@example.com")
	app := func(version, platform string) map[string]string {
		return map[string]string{"X-App-Version": version, "X-App-Platform": platform}
	}
	old := s.do(t, request{Path: "/api/v1/records/notes", Token: token, Header: app("1.9.9", "ios")})
	old.assertProblem(t, http.StatusUpgradeRequired, "api.app_upgrade_required")
	old.assertHeader(t, "X-App-Minimum-Version", "2.0.0")
	s.do(t, request{Path: "/api/v1/collections/notes/records", Token: token, Header: app("1.3.9", "android")}).
		assertProblem(t, http.StatusUpgradeRequired, "api.app_upgrade_required")

	served := []request{
		{Path: "/api/v1/records/notes", Header: app("1.4.0", "android")},
		{Path: "/api/v1/records/notes", Header: app("2.0.0", "ios")},
		{Path: "/api/v1/records/notes"},
		{Path: "/api/collections/notes/records", Header: app("0.1.0", "ios")},
		{Path: "/api/v1/health", Header: app("0.1.0", "ios")},
		{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-refresh", Header: app("0.1.0", "ios")},
	}
	for _, r := range served {
		r.Token = token
		if answer := s.do(t, r); answer.Status != http.StatusOK {
			t.Errorf("%s %s %v: %d %s", r.Method, r.Path, r.Header, answer.Status, answer.Body)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	id, token := s.user(t, "big@example.com")
	post := func(size int) response {
		body := fmt.Sprintf(`{"owner":%q,"title":"big"%s}`, id, strings.Repeat(" ", size))
		return s.do(t, request{
			Method: http.MethodPost, Path: "/api/v1/collections/notes/records", Token: token, Body: body,
			Header: map[string]string{"Content-Type": "application/json"},
		})
	}
	post(9<<20).assertStatus(t, http.StatusOK)
	post(10<<20).assertProblem(t, http.StatusRequestEntityTooLarge, "api.body_too_large")

	// Without a Content-Length the limit holds as well.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/api/v1/collections/notes/records",
		io.MultiReader(strings.NewReader(`{"title":"`), strings.NewReader(strings.Repeat("x", 11<<20)), strings.NewReader(`"}`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("chunked: status %d", resp.StatusCode)
	}
	list := s.do(t, request{Path: "/api/v1/collections/notes/records?fields=title", Token: token})
	if total := list.json(t)["totalItems"]; total != 1.0 {
		t.Errorf("%v notes were written, want 1", total)
	}
}

// A client that trickles its body byte by byte must not hold a connection longer than the deadline.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	s := start(t, "SATCHEL_API_DEADLINE=2s")
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/collections/users/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
	began := time.Now()
	ended := make(chan string, 1)
	go func() {
		_ = conn.SetReadDeadline(began.Add(20 * time.Second))
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			ended <- err.Error()
			return
		}
		answer.Body.Close()
		ended <- answer.Status
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case how := <-ended:
			took := time.Since(began)
			if took > 6*time.Second || strings.HasPrefix(how, "2") || strings.Contains(how, "timeout") {
				t.Errorf("the connection ended after %v with %s", took, how)
			}
			s.do(t, request{Path: "/api/v1/health"}).assertStatus(t, http.StatusOK)
			return
		case <-tick.C:
			_, _ = conn.Write([]byte(" ")) // fails once the server has hung up
		}
	}
}

// A client that never ends its headers is cut, and a hundred of them do not keep others out.
func TestSlowHeaders(t *testing.T) {
	if testing.Short() {
		t.Skip("the time for headers is one minute")
	}
	t.Parallel()
	s := start(t)
	var slow []net.Conn
	for range 100 {
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		slow = append(slow, conn)
	}
	s.do(t, request{Path: "/api/v1/health"}).assertStatus(t, http.StatusOK)
	limit := time.Now().Add(90 * time.Second)
	for _, conn := range slow {
		_ = conn.SetReadDeadline(limit)
		if rest, err := io.ReadAll(conn); err != nil || bytes.Contains(rest, []byte(" 200 ")) {
			t.Fatalf("a connection without headers was not cut: %q %v", rest, err)
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	for _, path := range []string{"/api/v1/nothing", "/api/v1/health/nothing", "/api/v1", "/api/v1/", "/api/v1/records", "/api/v1/records/nothing"} {
		answer := s.do(t, request{Path: path})
		if answer.Status != http.StatusNotFound || answer.json(t)["success"] != false {
			t.Errorf("%s: %d %s", path, answer.Status, answer.Body)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		answer := s.do(t, request{Method: method, Path: "/api/v1/health"})
		if answer.Status != http.StatusNotFound && answer.Status != http.StatusMethodNotAllowed {
			t.Errorf("%s /api/v1/health: %d %s", method, answer.Status, answer.Body)
		}
	}
	stock := s.do(t, request{Path: "/api/nothing"})
	if want := `{"data":{},"message":"The requested resource wasn't found.","status":404}`; stock.Status != http.StatusNotFound || strings.TrimSpace(string(stock.Body)) != want {
		t.Errorf("stock 404: %d %s, want %s", stock.Status, stock.Body, want)
	}
}

// Bad input is a problem of the client's, with a code, and writes nothing.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	id, token := s.user(t, "bad@example.com")
	const records = "/api/v1/collections/notes/records"
	good := `{"owner":"` + id + `","title":"x"`
	for name, r := range map[string]request{
		"malformed JSON":     {Method: http.MethodPost, Path: records, Body: good},
		"not an object":      {Method: http.MethodPost, Path: records, Body: `["x"]`},
		"wrong type":         {Method: http.MethodPost, Path: records, Body: good + `,"owner":{"a":1}}`},
		"duplicated key":     {Method: http.MethodPost, Path: records, Body: good + `,"title":"y"}`},
		"invalid UTF-8":      {Method: http.MethodPost, Path: records, Body: good + ",\"body\":\"\xff\xfe\"}"},
		"missing field":      {Method: http.MethodPost, Path: records, Body: `{"owner":"` + id + `"}`},
		"unknown collection": {Method: http.MethodPost, Path: "/api/v1/collections/nothing/records", Body: good + `}`},
		"bad filter":         {Path: "/api/v1/records/notes?filter=title+%3D"},
		"bad cursor":         {Path: "/api/v1/records/notes?cursor=AAAA"},
		"bad limit":          {Path: "/api/v1/records/notes?limit=-1"},
		"bad sort":           {Path: "/api/v1/records/notes?sort=nothing"},
		"invalid UTF-8 path": {Path: "/api/v1/records/notes/%ff%fe"},
	} {
		r.Token, r.Header = token, map[string]string{"Content-Type": "application/json"}
		answer := s.do(t, r)
		if answer.Status < 400 || answer.Status >= 500 || !strings.Contains(answer.text(t, "code"), ".") {
			t.Errorf("%s: %d %s", name, answer.Status, answer.Body)
		}
	}
	list := s.do(t, request{Path: records, Token: token})
	if total := list.json(t)["totalItems"]; total != 0.0 {
		t.Errorf("%v notes were written by bad requests: %s", total, list.Body)
	}
}
