package proxy

import (
	"fmt"
	"net/http"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/versions"
	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// Unsealed seals the Engine's layers and returns why it cannot, or "".
func Unsealed(st *engine.State, links Links) string {
	if st.Driver != "overlay2" {
		return fmt.Sprintf("the Engine's storage driver is %q and not overlay2", st.Driver)
	}
	if slices.ContainsFunc(st.DriverStatus, func(s []string) bool {
		return len(s) == 2 && s[0] == "Native Overlay Diff" && s[1] == "false"
	}) {
		return "the Engine reads layers where they are mounted (Native Overlay Diff: false)"
	}
	if err := links.Seal(st.DataRoot); err != nil {
		return err.Error()
	}
	return ""
}

// sealed decides about a request that has the Engine read a layer from the host.
func (x *exchange) sealed(what string) (policy.Verdict, error) {
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return policy.Verdict{}, err
	}
	return policy.HostLinks(x.profile(), what, Unsealed(st, x.srv.Links),
		"Build elsewhere and load or pull the image, or ask your admin for the storage driver overlay2.", x.switches().HostLinks), nil
}

// ownView is the API version of the first Engines that mount a container's volumes for an
// archive where nobody else sees them (24.0, daemon/containerfs_linux.go).
const ownView = "1.43"

// heldArchive decides about copying into or out of a container. An older Engine mounts the
// container's volumes for that on the host, by paths that whoever can write in the
// container, or in its volumes, swaps for links meanwhile.
func (x *exchange) heldArchive(id, owner string) (policy.Verdict, error) {
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil || !versions.LessThan(pinned(st.APIVersion), ownView) || x.profile().OwnershipOnly {
		return policy.Pass(), err
	}
	open := Unsealed(st, x.srv.Links)
	if open == "" {
		if open, err = x.holdLinks(st, id, owner); err != nil {
			return policy.Verdict{}, err
		}
	}
	return policy.HostLinks(x.profile(), "docker cp", open,
		"Copy with docker exec and tar, or by a bind, or ask your admin for Docker 24 or newer.", x.switches().HostLinks), nil
}

// holdLinks keeps the mounts of the archive from following links, and returns why it cannot.
// Containers of the owner's do not start until the Engine has mounted all.
func (x *exchange) holdLinks(st *engine.State, id, owner string) (open string, err error) {
	lock := x.srv.starts.of(owner)
	lock.Lock()
	x.release = lock.Unlock
	at, err := x.srv.Layouts.Layout(x.r.Context(), id)
	if err != nil {
		return "", err
	}
	sources, open := x.coverable(st, at.Mounts)
	held, err := x.srv.Links.Hold(st.DataRoot, at.Merged, sources)
	if err != nil {
		return err.Error(), nil
	}
	x.release = func() {
		x.noteHold(held.Release())
		lock.Unlock()
	}
	x.atEnd(func() {
		// Where the end did not come from the Engine, it may still be at it.
		if x.whole || !x.forwarded {
			x.noteHold(held.Clear())
		}
	})
	if held.Mounted() {
		return open, nil
	}
	// It cannot be mounted now. May it be, once the hold lets it?
	if at, err = x.srv.Layouts.Layout(x.r.Context(), id); err != nil {
		return "", err
	}
	if at.Alive {
		return "", &statusError{http.StatusConflict, "the container is starting or ending at this moment; try again"}
	}
	switch used, err := x.srv.Links.InUse(st.DataRoot, at.Merged); {
	case err != nil:
		return err.Error(), held.LetMount()
	case used:
		return "", &statusError{http.StatusConflict, "the container does not run, and somebody still holds its files open: end what does, or start the container, and try again"}
	}
	return open, held.LetMount()
}

func (x *exchange) noteHold(err error) {
	if err != nil {
		x.srv.Log.Error("let the Engine's mounts follow links again", zap.Error(err))
	}
}

// netFiles is where the Engine mounts files of its own.
var netFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// coverable returns the sources of a container's mounts that can be made to follow no
// links. Where another one is mounted at a place that no later mount can be led into,
// it does not matter: the Engine mounts in the order of depth.
func (x *exchange) coverable(st *engine.State, mounts []engine.Mount) (sources []string, open string) {
	for i, m := range mounts {
		if m.Type == "tmpfs" {
			continue
		}
		// The Engine mounts a read-only one once more, and takes the flag off by that.
		if m.RW && x.engineOwn(st, m) {
			sources = append(sources, m.Source)
			continue
		}
		later := func(dest string) bool { return depth(dest) >= depth(m.Destination) }
		if slices.ContainsFunc(netFiles, later) || slices.ContainsFunc(mounts, func(o engine.Mount) bool {
			return o.Destination != mounts[i].Destination && o.Type != "tmpfs" && later(o.Destination)
		}) {
			open = fmt.Sprintf("what is mounted at %s, read-only or from a place of the host, can lead other mounts", m.Destination)
		}
	}
	return sources, open
}

// engineOwn reports whether only the Engine and the daemon go where a mount comes from.
func (x *exchange) engineOwn(st *engine.State, m engine.Mount) bool {
	if filepath.Clean(m.Source) != m.Source {
		return false
	}
	dir, base := path.Split(m.Source)
	dir = path.Clean(dir)
	return dir == x.srv.StageDir || base == "_data" && path.Dir(dir) == path.Join(st.DataRoot, "volumes")
}

// depth is how many parts a destination has, as the Engine sorts mounts by it.
func depth(dest string) int { return strings.Count(path.Clean(dest), "/") }

// holdStart keeps archives of an owner's containers waiting until the Engine has answered.
func (x *exchange) holdStart(owner string) {
	lock := x.srv.starts.of(owner)
	lock.RLock()
	x.release = lock.RUnlock
}

// with takes a second verdict: what refuses counts, and then what lets through by a switch.
func (x *exchange) with(v policy.Verdict) func(policy.Verdict, error) (policy.Verdict, error) {
	return func(other policy.Verdict, err error) (policy.Verdict, error) {
		switch {
		case err != nil || !other.Allowed():
			return other, err
		case !v.Allowed():
			return v, nil
		}
		return x.opened(v, other), nil
	}
}
