package layers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Hold keeps what the Engine is about to mount for one request from following links.
type Hold struct {
	host    *Host
	work    string
	merged  string
	covers  []string
	mounted bool
	flagged bool
}

// Hold begins one. From then on the Engine's mounts of sources follow no links. A
// container that is mounted at merged follows none there either, and cannot be mounted
// anew until LetMount or Release: the kernel wants the working directory on the mount of
// the upper one. Containers that start in the meantime would have mounts without links,
// or fail; the caller keeps them from it.
func (h *Host) Hold(dataRoot, merged string, sources []string) (*Hold, error) {
	layer, err := layerOf(dataRoot, merged)
	if err != nil {
		return nil, err
	}
	pid, err := h.enginePID()
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &Hold{host: h, merged: merged}
	err = within(pid, func(mounts *mountTable) error {
		if err := ownVolumes(filepath.Join(dataRoot, "volumes"), sources, mounts); err != nil {
			return err
		}
		for _, source := range sources {
			if info, err := os.Lstat(source); err != nil {
				return fmt.Errorf("source of a mount: %w", err)
			} else if !info.IsDir() {
				// A file leads nowhere.
				continue
			}
			if err := h.cover(source); err != nil {
				return err
			}
			k.covers = append(k.covers, source)
		}
		if err := h.cover(filepath.Join(layer, "work")); err != nil {
			return err
		}
		k.work = filepath.Join(layer, "work")
		// What is not mounted by now cannot be.
		if k.mounted, err = isMount(merged); err != nil || !k.mounted {
			return err
		}
		if err := setAttr(merged, unix.MOUNT_ATTR_NOSYMFOLLOW, 0); err != nil {
			return err
		}
		h.flagged[merged]++
		k.flagged = true
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, k.release(true))
	}
	return k, nil
}

// Mounted reports whether the container was mounted when the hold began.
func (k *Hold) Mounted() bool { return k.mounted }

// LetMount lets the Engine mount the container.
func (k *Hold) LetMount() error {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	return k.release(false)
}

// Release ends the hold once the Engine has mounted what it needs. What it mounted goes
// on following no links, until Clear.
func (k *Hold) Release() error {
	k.host.mu.Lock()
	defer k.host.mu.Unlock()
	return k.release(true)
}

func (k *Hold) release(all bool) error {
	if k.work == "" && (!all || len(k.covers) == 0) {
		return nil
	}
	pid, err := k.host.enginePID()
	if err != nil {
		return err
	}
	return within(pid, func(*mountTable) error {
		var errs []error
		if k.work != "" {
			errs = append(errs, k.host.uncover(k.work))
			k.work = ""
		}
		if all {
			for _, source := range k.covers {
				errs = append(errs, k.host.uncover(source))
			}
			k.covers = nil
		}
		return errors.Join(errs...)
	})
}

// Clear lets the container's file system follow links again once the Engine is done with
// it and nobody else needs it otherwise. Without Clear it follows none until it is
// unmounted, which the container does not notice.
func (k *Hold) Clear() error {
	h := k.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if !k.flagged {
		return nil
	}
	k.flagged = false
	if h.flagged[k.merged]--; h.flagged[k.merged] > 0 {
		return nil
	}
	delete(h.flagged, k.merged)
	pid, err := h.enginePID()
	if err != nil {
		return err
	}
	return within(pid, func(*mountTable) error {
		if mounted, err := isMount(k.merged); err != nil || !mounted {
			// It has ended, or has gone.
			return nil
		}
		return setAttr(k.merged, 0, unix.MOUNT_ATTR_NOSYMFOLLOW)
	})
}

// ownVolumes makes the directory of volumes a private mount, if one is to be covered.
// Containers' mounts of volumes are slaves of a shared one: a cover would come and go in
// them too, and take the volume with it.
func ownVolumes(dir string, sources []string, mounts *mountTable) error {
	if !slices.ContainsFunc(sources, func(s string) bool { return strings.HasPrefix(s, dir+"/") }) {
		return nil
	}
	list, err := mounts.read()
	if err != nil {
		return err
	}
	mounted, err := isMount(dir)
	switch {
	case err != nil:
		return err
	case mounted && !list.shared(dir):
		return nil
	case mounted || list.below(dir):
		return fmt.Errorf("%s is shared or has mounts", dir)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(fmt.Errorf("mount %s: %w", dir, err), detach(dir))
	}
	return nil
}

// cover mounts a directory over itself, following no links.
func (h *Host) cover(dir string) (err error) {
	if h.covered[dir] > 0 {
		h.covered[dir]++
		return nil
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, unix.Close(tree)) }()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr %s: %w", dir, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", dir, err)
	}
	h.covered[dir] = 1
	return nil
}

func (h *Host) uncover(dir string) error {
	if h.covered[dir]--; h.covered[dir] > 0 {
		return nil
	}
	delete(h.covered, dir)
	return detach(dir)
}
