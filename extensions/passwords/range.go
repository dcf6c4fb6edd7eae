package passwords

import (
	"bufio"
	"context"
	"crypto/sha1" //nolint:gosec // the protocol's hash; nothing is protected by it
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

const (
	// rangeTimeout is how long a person waits for somebody else's server, at most.
	rangeTimeout = time.Second

	// rangePause is how long a service that failed is left alone.
	rangePause = 30 * time.Second

	// maxRange bounds an answer: about a thousand lines of 40 bytes with padding.
	maxRange = 256 << 10

	// rangePrefix is how many of the 40 hexadecimal digits the service learns.
	rangePrefix = 5
)

// ranges asks a service of leaked passwords by the range protocol (k-anonymity): the service learns the first five digits
// of the password's SHA-1 and answers all hashes that it knows with them, padded so that the length of the answer tells
// nothing. It fails open, and leaves the service alone for a while after the first failure, which is sooner than a breaker
// would. It is safe for concurrent use.
type ranges struct {
	url    string
	client *http.Client
	resume atomic.Int64 // Unix nanoseconds before which nobody asks
}

func newRanges(url string) *ranges {
	client := outbound.NewClient(outbound.Options{AllowPrivate: true}) // the operator's own copy of the service, perhaps
	client.Timeout = rangeTimeout
	return &ranges{url: strings.TrimSuffix(url, "/"), client: client}
}

// leaked reports whether the service knows the password. Neither the password nor its hash is logged.
func (r *ranges) leaked(ctx context.Context, logger *slog.Logger, password string) bool {
	if r.url == "" || password == "" || time.Now().UnixNano() < r.resume.Load() {
		return false
	}
	digest := sha1.Sum([]byte(password)) //nolint:gosec // see the import
	sum := strings.ToUpper(hex.EncodeToString(digest[:]))
	known, err := r.ask(ctx, sum[:rangePrefix], sum[rangePrefix:])
	if err != nil && ctx.Err() == nil {
		r.resume.Store(time.Now().Add(rangePause).UnixNano())
		logger.Warn("the service of leaked passwords did not answer; passwords are accepted without it",
			slog.String("pause", rangePause.String()), slog.String("error", strings.ReplaceAll(err.Error(), sum[:rangePrefix], "*****")))
	}
	return known
}

func (r *ranges) ask(ctx context.Context, prefix, suffix string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/"+prefix, nil)
	if err != nil {
		return false, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Add-Padding", "true")
	req.Header.Set("User-Agent", "satchel")
	resp, err := r.client.Do(req)
	if err != nil {
		return false, fmt.Errorf("ask: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("ask: status %d", resp.StatusCode)
	}
	lines := bufio.NewScanner(io.LimitReader(resp.Body, maxRange))
	for lines.Scan() {
		hash, count, ok := strings.Cut(strings.TrimSpace(lines.Text()), ":")
		if ok && strings.EqualFold(hash, suffix) {
			return count != "0", nil // 0 is padding
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("read answer: %w", err)
	}
	return false, nil
}
