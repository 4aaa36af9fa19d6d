package units

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// install makes a file below dir have the text, mode 0644, and reports whether it had another. There
// is always a whole file, over a crash too. Errors: a symbolic link, which is how an
// admin masks a unit or keeps it elsewhere.
func install(dir string, f File) (changed bool, err error) {
	path := filepath.Join(dir, f.Path)
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return false, err
	case !st.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file: unmask the unit (systemctl unmask), or remove it", path)
	default:
		old, err := os.ReadFile(path)
		if err != nil || string(old) == f.Text {
			return false, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, replace(path, f.Text)
}

func replace(path, text string) (err error) {
	// systemd reads no file whose name begins with a dot.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ds01-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
