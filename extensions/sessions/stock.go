package sessions

import (
	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/stock"
)

// Harden seals a token that PocketBase has made for a record, of any of its kinds. It is for tokens that are made outside
// of a request.
func (s *Sessions) Harden(record *core.Record, token string) (string, error) {
	return s.seals.Bind(record, token, "")
}

// accepts decides by the setting whether a stock token of authentication, verified by PocketBase, counts.
func (s *Sessions) accepts(record *core.Record, claims jwt.MapClaims) bool {
	switch s.cfg.StockTokens {
	case StockOn:
		return true
	case StockOff:
		return record.IsSuperuser() && s.seals.Sealed(record, claims)
	}
	return s.seals.Sealed(record, claims)
}

// stockTokens watches over the tokens that do not sign requests.
func (s *Sessions) stockTokens() stock.Tokens {
	return stock.Tokens{
		Sealer: s.seals, Lenient: s.cfg.StockTokens == StockOn,
		Session: func(e *core.RequestEvent) string {
			if c := Current(e); c != nil {
				return c.SessionID
			}
			return ""
		},
		Lives: func(app core.App, session, user string) bool {
			l, err := login.Find(app.ConcurrentDB(), session)
			return err == nil && l.Alive(s.now()) && l.Record == user
		},
	}
}
