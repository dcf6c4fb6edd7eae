// Package pb holds the places where Satchel relies on how PocketBase works inside. Each has a contract test beside it,
// so that an upgrade that breaks a promise breaks this package and no other.
package pb

import "github.com/pocketbase/pocketbase/core"

// CloseRealtime ends every stream of PocketBase's realtime API. A closed channel makes the handler of the stream return.
func CloseRealtime(app core.App) {
	broker := app.SubscriptionsBroker()
	for id := range broker.Clients() {
		broker.Unregister(id)
	}
}
