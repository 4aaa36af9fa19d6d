// Package layers keeps the Docker Engine from following the links of containers out of
// them. The Engine reads and mounts in containers' directories as root, by paths that
// processes inside can swap for links while it does (daemon/graphdriver/overlay2, Diff;
// daemon/volumes_unix.go, mountVolumes). A mount that follows no links (MS_NOSYMFOLLOW,
// mount(2)) makes such a step fail, and containers, which have mounts of their own, do
// not notice.
package layers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Host is the mounts of an Engine that keeps its layers in overlay2.
type Host struct {
	socket, stage string

	mu sync.Mutex
	// swept is true once what an earlier process left is away.
	swept bool
	// flagged counts who needs a container's file system to follow no links.
	flagged map[string]int
	// covered counts who needs a mount of its own over a directory.
	covered map[string]int
}

// New returns the Host of the Engine that listens on socket. Sources of mounts below
// stage are the daemon's own.
func New(socket, stage string) *Host {
	return &Host{socket: socket, stage: stage, flagged: make(map[string]int), covered: make(map[string]int)}
}

// layersOf is where overlay2 keeps its layers.
func layersOf(dataRoot string) string { return filepath.Join(dataRoot, "overlay2") }

// Seal makes the layers below the Engine's data root a mount that follows no links, but
// for overlay2/l, whose links the Engine itself goes by. What is mounted there already
// stays mounted and can be taken off as before: a copy of a shared mount follows it. It
// holds until the Engine's directory is unmounted, and costs next to nothing where it
// holds.
func (h *Host) Seal(dataRoot string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	pid, err := h.enginePID()
	if err != nil {
		return err
	}
	root := layersOf(dataRoot)
	if h.swept && sealed(filepath.Join("/proc", fmt.Sprint(pid), "root", root)) {
		return nil
	}
	return within(pid, func(mounts *mountTable) error {
		if !h.swept {
			if err := h.sweep(dataRoot, mounts); err != nil {
				return err
			}
			h.swept = true
		}
		if sealed(root) {
			return nil
		}
		return seal(root, mounts)
	})
}

// sealed reports whether a directory follows no links and its l does.
func sealed(root string) bool {
	own, err := follows(root)
	if err != nil || own {
		return false
	}
	links, err := follows(filepath.Join(root, "l"))
	return err == nil && links
}

func seal(root string, mounts *mountTable) error {
	list, err := mounts.read()
	if err != nil {
		return err
	}
	links := filepath.Join(root, "l")
	if info, err := os.Lstat(links); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a directory of the Engine's links: %w", links, err)
	}
	if mounted, err := isMount(root); err != nil {
		return err
	} else if !mounted {
		if !list.shared(root) && list.below(root) {
			return fmt.Errorf("%s has mounts and is not on a shared mount; start the daemon before any container runs", root)
		}
		// One call: no mount can come or go in between.
		if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", root, err)
		}
	}
	if mounted, err := isMount(links); err != nil {
		return err
	} else if !mounted {
		if err := unix.Mount(links, links, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", links, err)
		}
	}
	if err := setAttr(links, 0, unix.MOUNT_ATTR_NOSYMFOLLOW); err != nil {
		return err
	}
	if err := setAttr(root, unix.MOUNT_ATTR_NOSYMFOLLOW, 0); err != nil {
		return err
	}
	if !sealed(root) {
		return fmt.Errorf("%s follows links in spite of its mount", root)
	}
	return nil
}

// sweep takes away what an earlier process held when it ended.
func (h *Host) sweep(dataRoot string, mounts *mountTable) error {
	list, err := mounts.read()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		if m := list[i]; m.nofollow && h.ours(dataRoot, m.point) {
			errs = append(errs, detach(m.point))
		}
	}
	return errors.Join(errs...)
}

// ours reports whether a path is of those that a hold mounts over.
func (h *Host) ours(dataRoot, path string) bool {
	dir, base := filepath.Split(path)
	dir = filepath.Clean(dir)
	return dir == h.stage ||
		base == "_data" && filepath.Dir(dir) == filepath.Join(dataRoot, "volumes") ||
		base == "work" && filepath.Dir(dir) == layersOf(dataRoot)
}

// layerOf returns the directory of the layer that is mounted at merged.
func layerOf(dataRoot, merged string) (string, error) {
	layer := filepath.Dir(merged)
	if filepath.Clean(merged) != merged || filepath.Base(merged) != "merged" || filepath.Dir(layer) != layersOf(dataRoot) {
		return "", fmt.Errorf("%q is no container's place in %s", merged, layersOf(dataRoot))
	}
	return layer, nil
}

// InUse reports whether anybody can still reach the file system of a container that is
// not mounted, by a descriptor that was kept: the kernel then refuses to mount its upper
// directory once more with an index (Documentation/filesystems/overlayfs.rst, "Sharing
// and copying layers"). The attempt always fails, since its working directory is on
// another mount, and so changes nothing. The layers must be sealed.
func (h *Host) InUse(dataRoot, merged string) (used bool, err error) {
	layer, err := layerOf(dataRoot, merged)
	if err != nil {
		return true, err
	}
	pid, err := h.enginePID()
	if err != nil {
		return true, err
	}
	links := filepath.Join(layersOf(dataRoot), "l")
	err = within(pid, func(*mountTable) error {
		options := fmt.Sprintf("index=on,lowerdir=%s,upperdir=%s/diff,workdir=%s", links, layer, links)
		switch err := unix.Mount("overlay", links, "overlay", 0, options); {
		case errors.Is(err, unix.EBUSY):
			used = true
			return nil
		case errors.Is(err, unix.EINVAL):
			return nil
		case err == nil:
			return errors.Join(fmt.Errorf("%s was mounted", layer), detach(links))
		default:
			return fmt.Errorf("try %s: %w", layer, err)
		}
	})
	return used || err != nil, err
}
