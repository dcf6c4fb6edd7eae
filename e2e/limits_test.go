package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// sprayed is how many addresses an attacker with an IPv6 allocation or a botnet may show.
	sprayed = 1_000_000

	// limiterBudget is what the limiter's memory may grow by under them.
	limiterBudget = 8 << 20

	// refusalMemory and refusalDisk are what a quarter of a million refused requests may leave. A record of each of them
	// would take more than twice that.
	refusalMemory = 64 << 20
	refusalDisk   = 32 << 20

	// pipelined is how many requests are sent before their answers are read: it takes the round trips out of the time.
	pipelined = 100
)

// tally counts answers by status.
type tally struct{ served, limited atomic.Int64 }

// addresses appends the client's address of the i-th request.
type addresses func(to []byte, i int) []byte

func oneAddress(address string) addresses {
	return func(to []byte, _ int) []byte { return append(to, address...) }
}

// distinct gives a different address to each of 2^24 requests, or to each group of every requests.
func distinct(network byte, every int) addresses {
	return func(to []byte, i int) []byte {
		n := uint64(i / every)
		to = strconv.AppendUint(to, uint64(network), 10)
		for _, shift := range []int{16, 8, 0} {
			to = strconv.AppendUint(append(to, '.'), n>>shift&0xff, 10)
		}
		return to
	}
}

// spray sends n requests over a few kept connections; address names the client of each, as a trusted proxy does.
func (s *server) spray(t *testing.T, n int, address addresses) *tally {
	t.Helper()
	const connections = 4
	counts := &tally{}
	var next atomic.Int64
	var senders sync.WaitGroup
	for range connections {
		senders.Go(func() {
			p, err := s.dialPipeline()
			if err != nil {
				t.Errorf("connect: %v", err)
				return
			}
			defer p.conn.Close()
			for {
				from := int(next.Add(pipelined)) - pipelined
				if from >= n {
					return
				}
				if err := p.send(from, min(from+pipelined, n), address, counts); err != nil {
					t.Errorf("request %d: %v", from, err)
					return
				}
			}
		})
	}
	senders.Wait()
	return counts
}

// pipeline is a connection that sends many requests at once.
type pipeline struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
}

func (s *server) dialPipeline() (*pipeline, error) {
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return nil, err
	}
	return &pipeline{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), out: bufio.NewWriterSize(conn, 64<<10)}, nil
}

func (p *pipeline) send(from, to int, address addresses, counts *tally) error {
	for i := from; i < to; i++ {
		request := append(p.out.AvailableBuffer(), "GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: "...)
		if _, err := p.out.Write(append(address(request, i), "\r\n\r\n"...)); err != nil {
			return err
		}
	}
	if err := p.out.Flush(); err != nil {
		return err
	}
	for range to - from {
		status, err := p.answer()
		switch {
		case err != nil:
			return err
		case status == http.StatusOK:
			counts.served.Add(1)
		case status == http.StatusTooManyRequests:
			counts.limited.Add(1)
		default:
			return fmt.Errorf("status %d", status)
		}
	}
	return nil
}

// answer reads one answer with as little work as possible; http.ReadResponse costs more than the server's side.
func (p *pipeline) answer() (status int, err error) {
	line, err := p.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, fmt.Errorf("status line %q: %w", line, err)
	}
	length := 0
	for {
		if line, err = p.in.ReadSlice('\n'); err != nil {
			return 0, err
		}
		if len(line) == 2 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	_, err = p.in.Discard(length)
	return status, err
}

// resident is the memory of the server that the system counts, in bytes.
func (s *server) resident(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Skipf("resident memory cannot be read here: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmRSS in %s", status)
	return 0
}

// settled is the least resident memory within a few seconds of rest: the runtime returns freed pages in the background,
// and what a request has just used is not what the server keeps.
func (s *server) settled(t *testing.T) int64 {
	t.Helper()
	least := s.resident(t)
	for range 15 {
		time.Sleep(200 * time.Millisecond)
		least = min(least, s.resident(t))
	}
	return least
}

// growth warms a server up, sends the load and returns what resident memory has grown by since the warm-up.
func (s *server) growth(t *testing.T, load func()) int64 {
	t.Helper()
	// The heap reaches the size that the traffic itself needs. Fewer requests an address than its quota, so that none is
	// refused, and few addresses, so that the limiter has next to nothing to remember.
	if warm := s.spray(t, sprayed/10, distinct(172, 500)); warm.limited.Load() > 0 {
		t.Fatalf("%d requests of the warm-up were refused", warm.limited.Load())
	}
	before := s.settled(t)
	load()
	after := s.settled(t)
	t.Logf("resident memory %.1f MiB, then %.1f MiB", mib(before), mib(after))
	return after - before
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// Not parallel: it measures memory and needs the processor.
func TestLimiterUnderMillionAddresses(t *testing.T) {
	if testing.Short() {
		t.Skip("more than a million requests")
	}
	// By default garbage may grow to four times what lives, which is more than the budget and falls at random on either
	// side of the difference. Collecting often leaves what the limiter keeps.
	settings := func(more ...string) []string {
		return append([]string{"SATCHEL_API_TRUSTED_PROXIES=127.0.0.0/8", "SATCHEL_LOGS_REQUESTS=none", "SATCHEL_MEMORY_GOGC=25"}, more...)
	}

	// The same load from one address, whose quota is raised, shows what the traffic costs without the addresses. What it
	// keeps is there long before the last request: a fifth tells it.
	base := start(t, settings("SATCHEL_RATELIMIT_IP=60000000")...)
	began := time.Now()
	baseline := base.growth(t, func() {
		got := base.spray(t, sprayed/5, oneAddress("192.0.2.1"))
		if got.served.Load() != sprayed/5 {
			t.Fatalf("one address: %d served, %d limited", got.served.Load(), got.limited.Load())
		}
	})
	t.Logf("one address: grew %.1f MiB in %v", mib(baseline), time.Since(began).Round(time.Second))
	base.stop(t)

	s := start(t, settings()...) // the default limits
	began = time.Now()
	abuser := s.abuse(t)
	grown := s.growth(t, func() {
		got := s.spray(t, sprayed, distinct(10, 1))
		if got.served.Load() != sprayed {
			t.Errorf("a million addresses: %d served, %d limited", got.served.Load(), got.limited.Load())
		}
	})
	abuser.assertHeld(t)
	t.Logf("a million addresses: grew %.1f MiB in %v", mib(grown), time.Since(began).Round(time.Second))
	if attributed := grown - baseline; attributed > limiterBudget {
		t.Errorf("the limiter took %.1f MiB for a million addresses, budget %.1f MiB", mib(attributed), mib(limiterBudget))
	}
}

// abuser is an address that has used up its quota and goes on.
type abuser struct {
	counts *tally
	began  time.Time
	stop   chan struct{}
	done   sync.WaitGroup
}

const (
	// quota and refill are the limiter's defaults for an address: 600 a minute, all of which may come at once.
	quota  = 600
	refill = 10 // a second
)

// abuse uses up the quota of one address and keeps asking until assertHeld.
func (s *server) abuse(t *testing.T) *abuser {
	t.Helper()
	address := oneAddress("198.51.100.66")
	p, err := s.dialPipeline()
	if err != nil {
		t.Fatal(err)
	}
	a := &abuser{counts: &tally{}, began: time.Now(), stop: make(chan struct{})}
	if err := p.send(0, 2*quota, address, a.counts); err != nil {
		t.Fatal(err)
	}
	if a.counts.limited.Load() == 0 {
		t.Fatalf("%d requests at once from one address were served", a.counts.served.Load())
	}
	a.done.Go(func() {
		defer p.conn.Close()
		for {
			select {
			case <-a.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			if err := p.send(0, 1, address, a.counts); err != nil {
				t.Errorf("abuser: %v", err)
				return
			}
		}
	})
	return a
}

// assertHeld ends the abuse. Had the limiter forgotten the abuser once, a whole quota more would have been served.
func (a *abuser) assertHeld(t *testing.T) {
	t.Helper()
	close(a.stop)
	a.done.Wait()
	took := time.Since(a.began)
	allowed := quota + int64(took.Seconds()*refill) + quota/4
	t.Logf("abuser: %d served, %d limited in %v", a.counts.served.Load(), a.counts.limited.Load(), took.Round(time.Second))
	if served := a.counts.served.Load(); served > allowed {
		t.Errorf("an exhausted address was served %d times in %v, at most %d are due", served, took, allowed)
	}
	if a.counts.limited.Load() < a.counts.served.Load()/4 {
		t.Errorf("the abuser hardly tried: %d refused", a.counts.limited.Load())
	}
}

// Refusing must be cheaper than serving: a flood from one address must not fill the memory or the disk with its refusals.
func TestRefusalsAreCheap(t *testing.T) {
	if testing.Short() {
		t.Skip("a quarter of a million requests")
	}
	const flood = 250_000
	s := start(t, "SATCHEL_API_TRUSTED_PROXIES=127.0.0.0/8", "SATCHEL_LOGS_REQUESTS=none")
	grown := s.growth(t, func() {
		if got := s.spray(t, flood, oneAddress("198.51.100.66")); got.limited.Load() < flood*9/10 {
			t.Errorf("%d requests of a flood were served", got.served.Load())
		}
	})
	if grown > refusalMemory {
		t.Errorf("%d refused requests took %.1f MiB of memory, budget %.1f MiB", flood, mib(grown), mib(refusalMemory))
	}
	disk := s.databases()
	eventually(t, "the log is written", 30*time.Second, func() bool {
		before := disk
		time.Sleep(4 * time.Second) // the log is stored every three seconds
		disk = s.databases()
		return disk == before
	})
	t.Logf("%d refused requests: %.1f MiB of memory, %.1f MiB on disk", flood, mib(grown), mib(disk))
	if disk > refusalDisk {
		t.Errorf("%d refused requests left %.1f MiB on disk, budget %.1f MiB", flood, mib(disk), mib(refusalDisk))
	}
}

// databases is the size of the databases on disk, in bytes.
func (s *server) databases() (n int64) {
	for _, name := range []string{"auxiliary.db", "auxiliary.db-wal", "data.db", "data.db-wal"} {
		if info, err := os.Stat(filepath.Join(s.Dir, "pb_data", name)); err == nil {
			n += info.Size()
		}
	}
	return n
}

// An address that signs in too often is refused, and so is an account from many addresses.
func TestSignInLimit(t *testing.T) {
	t.Parallel()
	s := start(t, "SATCHEL_API_TRUSTED_PROXIES=127.0.0.0/8")
	attempt := func(path, address, email string) response {
		return s.do(t, request{
			Method: http.MethodPost, Path: path + "/collections/users/auth-with-password", Header: map[string]string{"X-Forwarded-For": address},
			JSON: map[string]any{"identity": email, "password": "guess"},
		})
	}
	for i := range 10 {
		path := []string{"/api", "/api/v1"}[i%2] // one bucket
		attempt(path, "203.0.113.1", fmt.Sprintf("victim%d@example.com", i)).assertStatus(t, http.StatusBadRequest)
	}
	over := attempt("/api/v1", "203.0.113.1", "victim99@example.com")
	over.assertProblem(t, http.StatusTooManyRequests, "ratelimit.exceeded")
	for _, header := range []string{"Retry-After", "RateLimit", "RateLimit-Policy"} {
		if over.Header.Get(header) == "" {
			t.Errorf("a refused answer has no %s", header)
		}
	}
	if seconds, err := strconv.Atoi(over.Header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 900 {
		t.Errorf("Retry-After is %q", over.Header.Get("Retry-After"))
	}
	attempt("/api", "203.0.113.1", "victim99@example.com").assertStatus(t, http.StatusTooManyRequests)
	attempt("/api/v1", "203.0.113.2", "victim99@example.com").assertStatus(t, http.StatusBadRequest)

	for i := range 10 {
		attempt("/api/v1", fmt.Sprintf("198.51.100.%d", i), "target@example.com").assertStatus(t, http.StatusBadRequest)
	}
	attempt("/api/v1", "198.51.100.200", "target@example.com").assertProblem(t, http.StatusTooManyRequests, "ratelimit.exceeded")
	// The limit is on signing in: everything else still works for that address.
	s.do(t, request{Path: "/api/v1/health", Header: map[string]string{"X-Forwarded-For": "203.0.113.1"}}).assertStatus(t, http.StatusOK)
}
