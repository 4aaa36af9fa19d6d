package proxy

import (
	"context"
	"fmt"
	"sync"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
)

// maxFresh is how many volumes of a user are remembered as fresh; what is made beyond
// is not filled.
const maxFresh = 4096

// A volumeBook knows what requests under way do with users' volumes, and which volumes
// are fresh: made through the proxy and given to no container yet. Nobody else can use
// a user's volumes, so that users do not wait for each other. The zero book is empty.
type volumeBook struct {
	mu    sync.Mutex
	users map[string]*userVolumes
}

type userVolumes struct {
	mu    sync.Mutex
	fresh map[string]bool
	holds map[*volumeHold]struct{}
	// changed is closed when those who wait may go on.
	changed chan struct{}
	// forgotten counts how often all that was fresh was forgotten.
	forgotten int
}

// of returns what is known of a user's volumes.
func (b *volumeBook) of(user string) *userVolumes {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users == nil {
		b.users = make(map[string]*userVolumes)
	}
	u := b.users[user]
	if u == nil {
		u = &userVolumes{fresh: make(map[string]bool), holds: make(map[*volumeHold]struct{}), changed: make(chan struct{})}
		b.users[user] = u
	}
	return u
}

// A volumeUse says what a request does with volumes.
type volumeUse uint8

const (
	// useVolumes gives volumes to a container: none of them is removed meanwhile.
	useVolumes volumeUse = iota
	// makeVolume makes one.
	makeVolume
	// removeVolumes removes one, or any.
	removeVolumes
)

// A volumeHold is what one request does with its user's volumes, from before the Engine
// may have it until the Engine has answered.
type volumeHold struct {
	use volumeUse
	// names are the volumes; without any, a name that the Engine chooses, or all.
	names map[string]bool
	// learning is true while the request may yet find out that a volume is fresh.
	learning bool
	// given is true once the names may be a container's.
	given bool
	// fills are fresh volumes into which the Engine may copy, anonymous is true where it
	// may make and fill others.
	fills     map[string]bool
	anonymous bool
	// forgotten is the user's count when fills were fresh.
	forgotten int
}

func shares(a, b map[string]bool) bool {
	for name := range a {
		if b[name] {
			return true
		}
	}
	return false
}

// excludes reports whether h cannot begin beside o.
func (h *volumeHold) excludes(o *volumeHold) bool {
	used, removed := h, o
	if used.use != useVolumes {
		used, removed = o, h
	}
	if used.use != useVolumes || removed.use != removeVolumes {
		return false
	}
	return shares(used.names, removed.names) || len(removed.names) == 0 && len(used.names) > 0
}

// delays reports whether names cannot be given to a container while o is under way:
// the Engine copies into one of them, or it is not yet known whether one is fresh.
func (o *volumeHold) delays(names, fresh map[string]bool) bool {
	if shares(o.fills, names) || o.learning && shares(o.names, names) {
		return true
	}
	if !o.anonymous && (!o.learning || len(o.names) > 0) {
		return false
	}
	for name := range names {
		if policy.AnonymousName(name) && !fresh[name] {
			return true
		}
	}
	return false
}

// wake lets those who wait look again. u.mu is held.
func (u *userVolumes) wake() {
	close(u.changed)
	u.changed = make(chan struct{})
}

// await calls try, with u.mu held, until it returns true, or the client leaves.
func (u *userVolumes) await(x *exchange, try func() bool) error {
	for {
		u.mu.Lock()
		done, changed := try(), u.changed
		u.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
			continue
		case <-x.r.Context().Done():
		case <-x.conn.left:
		}
		return fmt.Errorf("wait for a volume: %w", context.Canceled)
	}
}

// begin waits until h can begin.
func (u *userVolumes) begin(x *exchange, h *volumeHold) error {
	return u.await(x, func() bool {
		for o := range u.holds {
			if h.excludes(o) {
				return false
			}
		}
		u.holds[h] = struct{}{}
		return true
	})
}

// made remembers that a request has made a volume.
func (u *userVolumes) made(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for o := range u.holds {
		if o.given && o.names[name] {
			// It may be on its way to a container.
			return
		}
	}
	if len(u.fresh) < maxFresh {
		u.fresh[name] = true
	}
}

// learnt says that h finds out no more.
func (u *userVolumes) learnt(h *volumeHold) {
	u.mu.Lock()
	defer u.mu.Unlock()
	h.learning = false
	u.wake()
}

// give gives h's volumes to a container. It waits until the Engine copies into none of
// them, and returns those that are fresh: these are h's to be filled, and fresh no more.
func (u *userVolumes) give(x *exchange, h *volumeHold) (fresh map[string]bool, err error) {
	fresh = make(map[string]bool)
	err = u.await(x, func() bool {
		for o := range u.holds {
			if o != h && o.delays(h.names, u.fresh) {
				return false
			}
		}
		for name := range h.names {
			if u.fresh[name] {
				fresh[name] = true
				delete(u.fresh, name)
			}
		}
		// An image may have volumes by the time that the Engine looks.
		h.given, h.fills, h.anonymous, h.forgotten = true, fresh, true, u.forgotten
		return true
	})
	return fresh, err
}

// end ends h. Where nothing was forwarded, what was fresh is so again.
func (u *userVolumes) end(h *volumeHold, forwarded bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !forwarded && h.forgotten == u.forgotten {
		for name := range h.fills {
			u.fresh[name] = true
		}
	}
	delete(u.holds, h)
	u.wake()
}

// forget forgets which volumes are fresh.
func (u *userVolumes) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.fresh)
	u.forgotten++
}

// giveUnchecked gives h's volumes to a container that may be anything.
func (u *userVolumes) giveUnchecked(h *volumeHold) {
	u.forget()
	u.mu.Lock()
	defer u.mu.Unlock()
	h.given = true
}

// holdVolumes begins what the request does with volumes, and has it end once the Engine
// has answered.
func (x *exchange) holdVolumes(use volumeUse, names ...string) error {
	h := &volumeHold{use: use, names: make(map[string]bool, len(names)), learning: use != removeVolumes}
	for _, name := range names {
		h.names[name] = true
	}
	u := x.srv.volumes.of(x.subject.User)
	if err := u.begin(x, h); err != nil {
		return err
	}
	x.volumeHold = h
	end := func() {
		if x.volumeHold != nil {
			x.volumeHold = nil
			u.end(h, x.forwarded)
		}
	}
	x.atEnd(end)
	if use != makeVolume {
		// What a make has made is learnt from the answer.
		x.release = end
	}
	return nil
}

// stays reports whether the Engine's answer is awaited even if the client leaves: what
// the request does with volumes is done no sooner.
func (x *exchange) stays() bool {
	return x.awaited || x.volumeHold != nil && x.volumeHold.use != makeVolume
}

// madeVolume remembers a volume that this request has made.
func (x *exchange) madeVolume(name string) {
	if x.subject.Mode == policy.ModeFull {
		x.srv.volumes.of(x.subject.User).made(name)
	}
}

// fillVolumes lets the Engine copy the image's content into fresh volumes only, and
// that while nobody else can have them.
func (x *exchange) fillVolumes(req *container.CreateRequest) error {
	u := x.srv.volumes.of(x.subject.User)
	if x.subject.Mode != policy.ModeFull || x.profile().OwnershipOnly {
		u.giveUnchecked(x.volumeHold)
		return nil
	}
	fresh, err := u.give(x, x.volumeHold)
	if err == nil {
		policy.FillOnly(req, fresh)
	}
	return err
}
