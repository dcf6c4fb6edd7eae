package fcm

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/push/sender"
)

const (
	tokenURL = "https://oauth2.googleapis.com/token" //nolint:gosec // an address, not a secret
	scope    = "https://www.googleapis.com/auth/firebase.messaging"

	// assertionLife is the longest that Google takes.
	assertionLife = time.Hour

	// renewBefore is how long an access token that is handed out is still good for.
	renewBefore = 5 * time.Minute

	// After a failure nobody asks again for so long: all who wait would ask one after the other.
	pauseFailed, pauseRefused = 5 * time.Second, time.Minute
)

// Credentials are the service account file that the Firebase console makes.
type Credentials struct {
	Account string `json:"account"`
}

// account is what the file says, as far as it is used.
type account struct {
	Type      string `json:"type"`
	ProjectID string `json:"project_id"`
	KeyID     string `json:"private_key_id"`
	Key       string `json:"private_key"`
	Email     string `json:"client_email"`
	TokenURI  string `json:"token_uri"`

	key *rsa.PrivateKey
}

// Validate tells what is wrong with credentials, as far as their form says.
func (c Credentials) Validate() error {
	_, err := c.parse(false)
	return err
}

// Describe is what may be shown of the credentials: the project and the account.
func (c Credentials) Describe() string {
	a, err := c.parse(true)
	if err != nil {
		return ""
	}
	return a.ProjectID + ", " + a.Email
}

func (c Credentials) parse(anyServer bool) (*account, error) {
	var a account
	if err := json.Unmarshal([]byte(c.Account), &a); err != nil {
		return nil, errors.New("account: must be the JSON file of a service account (Firebase console, project settings, service accounts)")
	}
	if a.Type != "service_account" {
		return nil, errors.New("account: this is another file; google-services.json and client secrets belong into the app, a service account has \"type\": \"service_account\"")
	}
	key, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(a.Key))
	if err != nil {
		return nil, errors.New("account: private_key is no RSA key in PEM")
	}
	a.key = key
	switch {
	case !regexp.MustCompile(`^[a-z][a-z0-9-]{4,61}[a-z0-9]$`).MatchString(a.ProjectID):
		return nil, errors.New("account: project_id is missing or not one")
	case !strings.Contains(a.Email, "@"):
		return nil, errors.New("account: client_email is missing or not one")
	case !anyServer && a.TokenURI != tokenURL:
		return nil, fmt.Errorf("account: token_uri must be %s", tokenURL)
	}
	return &a, nil
}

// tokens hands out the access token and gets a new one when it runs out, one at a time. It is safe for concurrent use.
type tokens struct {
	account *account
	client  *http.Client

	mu      sync.Mutex
	access  string
	until   time.Time
	failed  sender.Result // of the last try
	again   time.Time     // when there may be another
	getting chan struct{} // closed when it has ended; nil when nobody is at it
}

// forget drops an access token that FCM refuses, unless there is a newer one.
func (t *tokens) forget(access string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.access == access {
		t.access = ""
	}
}

// get returns the access token, or why there is none.
func (t *tokens) get(ctx context.Context) (string, sender.Result) {
	for {
		t.mu.Lock()
		now := time.Now()
		if t.access != "" && now.Before(t.until.Add(-renewBefore)) {
			defer t.mu.Unlock()
			return t.access, sender.Result{}
		}
		if now.Before(t.again) {
			defer t.mu.Unlock()
			return "", t.failed
		}
		getting := t.getting
		if getting == nil {
			getting = make(chan struct{})
			t.getting = getting
			go t.renew(context.WithoutCancel(ctx)) // all wait for it, whoever asked first
		}
		t.mu.Unlock()
		select {
		case <-getting:
		case <-ctx.Done():
			return "", sender.Result{Outcome: sender.Retry, Code: sender.CodeTimeout, Detail: "no access token in time"}
		}
	}
}

func (t *tokens) renew(ctx context.Context) {
	access, life, r := t.grant(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.access, t.until, t.failed, t.again = access, time.Now().Add(life), r, time.Time{}
	switch r.Outcome {
	case 0:
	case sender.Unauthorized:
		t.again = time.Now().Add(pauseRefused)
	default:
		t.again = time.Now().Add(pauseFailed)
	}
	close(t.getting)
	t.getting = nil
}

// grant trades a signed assertion for an access token (RFC 7523 section 2.1).
func (t *tokens) grant(ctx context.Context) (access string, life time.Duration, r sender.Result) {
	now := time.Now()
	assertion := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": t.account.Email, "scope": scope, "aud": t.account.TokenURI, "iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	assertion.Header["kid"] = t.account.KeyID
	signed, err := assertion.SignedString(t.account.key)
	if err != nil {
		return "", 0, sender.Result{Outcome: sender.Unauthorized, Code: sender.CodeInvalid, Detail: "the account's key cannot sign"}
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {signed}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.account.TokenURI, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, sender.Result{Outcome: sender.Unauthorized, Code: sender.CodeInvalid, Detail: "the account's token_uri is no address"}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, r := sender.Call(t.client, req)
	if answer == nil {
		return "", 0, r
	}
	var granted struct {
		Access    string `json:"access_token"`
		ExpiresIn int    `json:"expires_in"`
		Error     string `json:"error"`
		Text      string `json:"error_description"`
	}
	err = json.Unmarshal(answer.Body, &granted)
	switch {
	case answer.Status == http.StatusTooManyRequests, answer.Status >= 500:
		return "", 0, sender.Later(answer, "oauth_unavailable")
	case answer.Status != http.StatusOK:
		return "", 0, sender.Result{Outcome: sender.Unauthorized, Code: granted.Error, Detail: granted.Text, Status: answer.Status}
	case err != nil, granted.Access == "", granted.ExpiresIn <= 0:
		return "", 0, sender.Result{Outcome: sender.Retry, Code: sender.CodeUnreadable, Detail: "the answer of the OAuth server is none"}
	}
	return granted.Access, max(time.Duration(granted.ExpiresIn)*time.Second, 2*renewBefore), sender.Result{}
}
