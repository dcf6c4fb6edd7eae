package login

import "time"

// View is a session as its owner sees it.
type View struct {
	ID         string    `json:"id"`
	Collection string    `json:"collection,omitempty"` // for admins
	User       string    `json:"user,omitempty"`       // for admins
	DeviceID   string    `json:"deviceId"`
	Name       string    `json:"name"`
	Platform   string    `json:"platform"`
	AppVersion string    `json:"appVersion"`
	UserAgent  string    `json:"userAgent"`
	Address    string    `json:"address"`
	Methods    []string  `json:"methods"`
	CreatedAt  time.Time `json:"createdAt"`
	LastUsedAt time.Time `json:"lastUsedAt"`
	SignedInAt time.Time `json:"signedInAt"` // when a credential was last shown
	ExpiresAt  time.Time `json:"expiresAt"`
	Current    bool      `json:"current"`
	Actor      string    `json:"actor,omitempty"` // an admin who acts for the user
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// View describes the session; current is the id of the one that asks.
func (l *Login) View(current string) View {
	return View{
		ID: l.ID, DeviceID: l.DeviceID, Name: l.DeviceName, Platform: l.Platform, AppVersion: l.AppVersion, UserAgent: l.UserAgent,
		Address: l.Address, Methods: l.AMR(), CreatedAt: at(l.CreatedAt), LastUsedAt: at(l.UsedAt), SignedInAt: at(l.AuthAt),
		ExpiresAt: l.Until().UTC(), Current: l.ID == current, Actor: l.Actor,
	}
}
