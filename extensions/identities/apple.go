package identities

import (
	"fmt"
	"log/slog"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// keepAppleToken stores what a later revocation needs. The sign-in does not fail with it: the person can do nothing about
// Apple, and the next sign-in brings another code.
func (s *service) keepAppleToken(e *core.RequestEvent, c *claims, out *outcome, code string) {
	if s.apple == nil || s.deps.Seal == nil || code == "" || c.provider.name != "apple" || out.repeated {
		return
	}
	err := func() error {
		token, err := s.apple.Redeem(e.Request.Context(), c.audience, code, c.subject)
		if err != nil {
			return err
		}
		sealed, err := s.deps.Seal(revocationAAD(out.link.ID), []byte(token))
		if err != nil {
			return fmt.Errorf("seal token: %w", err)
		}
		_, err = e.App.DB().Update(linksTable, dbx.Params{"client": c.audience, "sealed": sealed}, dbx.HashExp{"id": out.link.ID}).Execute()
		return err
	}()
	if err != nil {
		s.logger.LogAttrs(e.Request.Context(), slog.LevelWarn, "Apple's refresh token cannot be kept", slog.String("link", out.link.ID), slog.Any("error", err))
	}
}

// revocationAAD ties a sealed token to its row.
func revocationAAD(link string) string { return linksTable + "|sealed|" + link }
