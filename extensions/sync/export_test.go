package sync

import "errors"

// LoseViews closes the file of the views as a crash does, removes it if remove is set, and opens it again.
func (s *Sync) LoseViews(dataDir string, remove func(name string) error) error {
	return errors.Join(s.views.Abandon(), remove("sync_views.db"), remove("sync_views.db-wal"), remove("sync_views.db-shm"), s.views.Open(dataDir))
}
