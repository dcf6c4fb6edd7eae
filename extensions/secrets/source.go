package secrets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

// keyName is the name of the key file and of the systemd credential.
const keyName = "satchel.key"

var (
	errEmpty = errors.New("is empty")

	// errNoKey says that there is no master key in any place.
	errNoKey = errors.New("there is no master key")
)

// source looks for the master key.
type source struct {
	cfg     Config
	dataDir string
	keyFile string
}

func newSource(cfg Config, h *extensions.Host) source {
	dir := h.App.DataDir()
	return source{cfg: cfg, dataDir: dir, keyFile: keyFile(cfg, dir)}
}

// keyFile is beside the data folder, where backups do not reach.
func keyFile(cfg Config, dataDir string) string {
	if cfg.KeyFile != "" {
		return cfg.KeyFile
	}
	return filepath.Join(dataDir, "..", keyName)
}

// find returns the master key and where it was. The error is errNoKey if there is none; every other one is for a person.
func (s source) find() (key []byte, from string, err error) {
	if s.cfg.MasterKey != "" {
		return s.given()
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" { // systemd.exec(5)
		path := filepath.Join(dir, keyName)
		key, err := secret.ReadKeyFile(path, false) // systemd decides who may read it
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return key, "the systemd credential " + keyName, unusable(err, "mend the file that LoadCredential names in the unit")
		}
	}
	if err := s.outside(s.keyFile); err != nil {
		return nil, "", err
	}
	key, err = secret.ReadKeyFile(s.keyFile, true)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", errNoKey
	case errors.Is(err, secret.ErrExposed):
		return nil, "", unusable(err, "chmod 600 "+s.keyFile)
	}
	return key, s.keyFile, unusable(err, "put the right key there; only if no data exists yet, remove the file")
}

func (s source) given() ([]byte, string, error) {
	if s.cfg.MasterKeyFile == "" {
		key, err := secret.ParseKey(string(s.cfg.MasterKey))
		return key, "SATCHEL_MASTER_KEY", unusable(err, "satchel secrets generate prints a key")
	}
	if err := s.outside(s.cfg.MasterKeyFile); err != nil {
		return nil, "", err
	}
	key, err := secret.ParseKey(string(s.cfg.MasterKey))
	return key, "SATCHEL_MASTER_KEY_FILE", unusable(err, "satchel secrets generate --out FILE makes one")
}

// outside refuses a key file in the data folder: a backup would hold the lock and the key.
func (s source) outside(path string) error {
	inside, err := secret.Inside(path, s.dataDir)
	if err != nil {
		return unusable(err, "put the key file into a folder that this user can read")
	}
	if inside {
		return cli.Fail(cli.ExitChecks, "the master key must not lie in the data folder", path+" would be part of every backup",
			"move it out of "+s.dataDir+" and name its new place in SATCHEL_MASTER_KEY_FILE")
	}
	return nil
}

// make writes a new key file. Another process may have made one in the same moment; then that one counts.
func (s source) make() ([]byte, error) {
	err := secret.WriteKeyFile(s.keyFile, secret.NewKey())
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, unusable(err, "give this user write access to "+filepath.Dir(s.keyFile)+", or set SATCHEL_MASTER_KEY")
	}
	key, _, err := s.find()
	return key, err
}

// places is where find looks.
func (s source) places() string {
	return fmt.Sprintf("it is not in SATCHEL_MASTER_KEY, SATCHEL_MASTER_KEY_FILE, the systemd credential %s or %s", keyName, s.keyFile)
}

func unusable(err error, next string) error {
	if err == nil {
		return nil
	}
	return cli.Fail(cli.ExitChecks, "the master key cannot be used", err.Error(), next)
}

// missing explains errNoKey. sealed says that there is something to open.
func (s source) missing(sealed bool) error {
	if sealed {
		return cli.Fail(cli.ExitChecks, "the master key of the data in "+s.dataDir+" is missing",
			s.places()+"\nno other key opens what is sealed, so none is made",
			"put the key back; it is kept apart from the backups")
	}
	return cli.Fail(cli.ExitChecks, "there is no master key", s.places()+"\nin production mode none is made by itself",
		"satchel secrets generate --out "+s.keyFile+", and keep a copy apart from the backups")
}

// mismatch explains a key that does not open the root key.
func (s source) mismatch(from string, err error) error {
	if errors.Is(err, secret.ErrOtherKey) {
		return cli.Fail(cli.ExitChecks, "the master key is not the one of the data in "+s.dataDir,
			"the key from "+from+" differs from the one under which the data is sealed; nothing was changed",
			"put the right key back; if the key was changed, set SATCHEL_MASTER_KEY_PREVIOUS to the old one and run: satchel secrets rewrap")
	}
	return cli.Fail(cli.ExitChecks, "the root key in "+s.dataDir+" cannot be opened", err.Error(), "restore a backup of the database")
}
