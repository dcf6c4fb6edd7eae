package idp

import (
	"crypto/rand"
	"net/http"
	"slices"

	"github.com/golang-jwt/jwt/v5"
)

// grant is what a code stands for.
type grant struct{ subject, client string }

// Code makes an authorization code of a person's sign-in for a client, as Apple gives to an app. It is good once.
func (s *Server) Code(subject, client string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	code := rand.Text()
	s.codes[code] = grant{subject, client}
	return code
}

// RefreshToken is the token that the code is traded for.
func RefreshToken(code string) string { return "refresh-" + code }

// Revoked lists the tokens that were revoked, in order.
func (s *Server) Revoked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.revoked)
}

// token trades a code, in the form of Apple's route of that name.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	code := r.FormValue("code")
	s.mu.Lock()
	g, ok := s.codes[code]
	delete(s.codes, code)
	s.mu.Unlock()
	if !ok || g.client != r.FormValue("client_id") || r.FormValue("grant_type") != "authorization_code" || !clientSecret(r) || s.down() {
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	id, err := s.Sign("RS256", s.Claims(g.subject, map[string]any{"aud": g.client}), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, map[string]any{"refresh_token": RefreshToken(code), "id_token": id, "token_type": "Bearer", "expires_in": 3600})
}

func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	if !clientSecret(r) || s.down() {
		http.Error(w, `{"error":"invalid_client"}`, http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = append(s.revoked, r.FormValue("token"))
}

func (s *Server) down() bool { return Behaviour(s.behaviour.Load()) == Down }

// clientSecret reports whether the secret has the form that Apple wants. The stub does not know the app's key.
func clientSecret(r *http.Request) bool {
	claims := jwt.RegisteredClaims{}
	token, _, err := jwt.NewParser().ParseUnverified(r.FormValue("client_secret"), &claims)
	return err == nil && token.Method == jwt.SigningMethodES256 && token.Header["kid"] != nil && claims.Issuer != "" &&
		claims.Subject == r.FormValue("client_id") && slices.Contains(claims.Audience, "https://appleid.apple.com") && claims.ExpiresAt != nil
}
