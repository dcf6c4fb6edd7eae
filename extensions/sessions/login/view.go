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
	Created    time.Time `json:"created"`
	LastUsed   time.Time `json:"lastUsed"`
	SignedIn   time.Time `json:"signedIn"` // when a credential was last shown
	Expires    time.Time `json:"expires"`
	Current    bool      `json:"current"`
	Actor      string    `json:"actor,omitempty"` // an admin who acts for the user
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// View describes the session; current is the id of the one that asks.
func (l *Login) View(current string) View {
	return View{
		ID: l.ID, DeviceID: l.DeviceID, Name: l.DeviceName, Platform: l.Platform, AppVersion: l.AppVersion, UserAgent: l.UserAgent,
		Address: l.Address, Methods: l.AMR(), Created: at(l.CreatedAt), LastUsed: at(l.UsedAt), SignedIn: at(l.AuthAt),
		Expires: l.Until().UTC(), Current: l.ID == current, Actor: l.Actor,
	}
}
