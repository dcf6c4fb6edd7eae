package identities

import (
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// Longest values of the members, in bytes.
const (
	maxText = 512
	maxName = 100
)

// input is the body of an exchange or a link.
type input struct {
	Provider    string `json:"provider"`
	IDToken     string `json:"idToken"`
	Nonce       string `json:"nonce,omitempty"`
	AccessToken string `json:"accessToken,omitempty"`
	Collection  string `json:"collection,omitempty"`
	MFAID       string `json:"mfaId,omitempty"`
	Code        string `json:"authorizationCode,omitempty"` // Apple's
}

// readInput parses the body strictly, so that a mistyped "nonce" is told and not ignored. PocketBase reads mfaId by
// itself.
func readInput(e *core.RequestEvent) (input, error) {
	var in input
	if err := api.Bind(e, &in); err != nil {
		return in, err
	}
	var wrong []api.FieldError
	for _, f := range []struct {
		name, value string
		max         int
		required    bool
	}{
		{"provider", in.Provider, maxName, true},
		{"idToken", in.IDToken, maxToken, true},
		{"nonce", in.Nonce, maxText, false},
		{"accessToken", in.AccessToken, maxToken, false},
		{"collection", in.Collection, maxName, false},
		{"mfaId", in.MFAID, maxName, false},
		{"authorizationCode", in.Code, maxText, false},
	} {
		switch {
		case f.required && f.value == "":
			wrong = append(wrong, api.Invalid(f.name, api.ErrFieldRequired, ""))
		case len(f.value) > f.max:
			wrong = append(wrong, api.Invalid(f.name, api.ErrFieldLong, ""))
		}
	}
	if len(wrong) > 0 {
		return in, api.InvalidBody(wrong...)
	}
	return in, nil
}
