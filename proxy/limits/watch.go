package limits

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// settleTime is how long files must be still before they are called changed.
const settleTime = 200 * time.Millisecond

// Watch calls onChange, from one goroutine, once it watches and after each change of the
// files, until ctx ends. Directories that do not exist yet are awaited. Changes that come
// within a fifth of a second are one. It reads no file: onChange calls Reload. Errors:
// where the kernel gives no more watches.
func (s *Store) Watch(ctx context.Context, onChange func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch limits: %w", err)
	}
	defer watcher.Close()
	w := &watch{Watcher: watcher, store: s, warned: make(map[string]bool)}
	w.arm()
	settle := time.NewTimer(settleTime)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-watcher.Events:
			if !ok {
				return nil
			}
			if !w.matters(filepath.Clean(e.Name)) {
				continue
			}
		case err, ok := <-watcher.Errors:
			if !ok {
				return nil
			}
			// Events may be lost.
			s.log.Warn("watching limits", zap.Error(err))
		case <-settle.C:
			// What appeared before its directory was watched is seen by onChange.
			if !w.arm() {
				onChange()
				continue
			}
		}
		settle.Reset(settleTime)
	}
}

// A watch is on directories, since editors replace files.
type watch struct {
	*fsnotify.Watcher
	store *Store
	// dirs are those that are to be watched, and targets what links lead to.
	dirs, targets []string
	warned        map[string]bool
}

// arm watches what exists by now of what is to be watched, and reports whether that is
// more than before.
func (w *watch) arm() (more bool) {
	dir := filepath.Dir(w.store.path)
	w.dirs = []string{dir, filepath.Join(dir, groupsName)}
	w.targets = nil
	for _, file := range []string{w.store.path, filepath.Join(dir, overridesName)} {
		if to, err := filepath.EvalSymlinks(file); err == nil && to != file {
			w.targets = append(w.targets, to)
			w.dirs = append(w.dirs, filepath.Dir(to))
		}
	}
	before := w.WatchList()
	for _, dir := range w.dirs {
		err := w.Add(dir)
		for errors.Is(err, os.ErrNotExist) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			err = w.Add(dir)
		}
		if err != nil && !w.warned[dir] {
			w.warned[dir] = true
			w.store.log.Warn("a directory of limits is not watched; its changes are seen at the next refresh", zap.String("directory", dir), zap.Error(err))
		}
	}
	return slices.ContainsFunc(w.WatchList(), func(dir string) bool { return !slices.Contains(before, dir) })
}

// matters reports whether a name is one of the files or of the directories above them.
func (w *watch) matters(name string) bool {
	dir := filepath.Dir(w.store.path)
	switch {
	case name == w.store.path, name == filepath.Join(dir, overridesName), slices.Contains(w.targets, name):
		return true
	case strings.HasSuffix(name, membersSuffix) && filepath.Dir(name) == filepath.Join(dir, groupsName):
		return true
	}
	return slices.ContainsFunc(w.dirs, func(d string) bool { return d == name || strings.HasPrefix(d, strings.TrimSuffix(name, "/")+"/") })
}
