// Package inbox remembers what arrived at the stand-ins for providers and shows it on a page.
package inbox

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Size is how many arrivals are kept; older ones are forgotten.
const Size = 500

// maxBody is how much of a body is kept.
const maxBody = 64 << 10

// Arrival is one thing that a stub was asked to deliver.
type Arrival struct {
	Time     time.Time         `json:"time"`
	Provider string            `json:"provider"`
	To       string            `json:"to"`
	Title    string            `json:"title"`
	Text     string            `json:"text"`
	Status   int               `json:"status"`
	Reason   string            `json:"reason,omitempty"` // why it was refused
	Headers  map[string]string `json:"headers,omitempty"`
	Body     string            `json:"body"`
	Raw      []byte            `json:"raw,omitempty"` // the bytes of the wire, where Body is what they mean
}

// Inbox keeps the newest arrivals. It is safe for concurrent use; nil keeps nothing.
type Inbox struct {
	mu   sync.Mutex
	list []Arrival
}

// Add appends an arrival.
func (b *Inbox) Add(a Arrival) {
	if b == nil {
		return
	}
	a.Time = time.Now().UTC()
	a.Body, a.Raw = a.Body[:min(len(a.Body), maxBody)], a.Raw[:min(len(a.Raw), maxBody)]
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.list) == Size {
		b.list = slices.Delete(b.list, 0, 1)
	}
	b.list = append(b.list, a)
}

// List returns the arrivals, the oldest first. An empty provider means all.
func (b *Inbox) List(provider string) []Arrival {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	list := slices.Clone(b.list)
	return slices.DeleteFunc(list, func(a Arrival) bool { return provider != "" && a.Provider != provider })
}

// Clear forgets everything.
func (b *Inbox) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = nil
}

//go:embed page.html
var page string

// Handler serves the page at /, the arrivals as JSON at /arrivals?provider=, and forgets them on DELETE /arrivals. It
// answers only to names of loopback, so that a page of somebody else cannot read it through a name that leads here.
func (b *Inbox) Handler() http.Handler {
	view := template.Must(template.New("page").Parse(page))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		list := b.List("")
		slices.Reverse(list)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'")
		_ = view.Execute(w, list)
	})
	mux.HandleFunc("GET /arrivals", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(slices.Concat([]Arrival{}, b.List(r.URL.Query().Get("provider"))))
	})
	mux.HandleFunc("DELETE /arrivals", func(w http.ResponseWriter, _ *http.Request) {
		b.Clear()
		w.WriteHeader(http.StatusNoContent)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !local(r.Host) {
			http.Error(w, "only names of loopback are answered", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && ip.IsLoopback())
}
