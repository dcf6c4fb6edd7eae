package load

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// Account is who has signed in. Only Satchel has access and refresh tokens.
type Account struct{ ID, Token, Access, Refresh string }

// SignIn signs in with a password, as PocketBase's clients do.
func SignIn(ctx context.Context, addr, email, password string) (Account, error) {
	body, err := json.Marshal(map[string]string{"identity": email, "password": password})
	if err != nil {
		return Account{}, fmt.Errorf("build request: %w", err)
	}
	answer, err := Fetch(ctx, addr, NewRequest(http.MethodPost, addr, "/api/collections/users/auth-with-password", body))
	if err != nil {
		return Account{}, err
	}
	var got struct {
		Token  string
		Record struct{ ID string }
		Meta   struct {
			Session struct{ AccessToken, RefreshToken string }
		}
	}
	if err := json.Unmarshal(answer.Body, &got); err != nil || got.Token == "" {
		return Account{}, fmt.Errorf("status %d: %s", answer.Status, answer.Body)
	}
	return Account{ID: got.Record.ID, Token: got.Token, Access: got.Meta.Session.AccessToken, Refresh: got.Meta.Session.RefreshToken}, nil
}
