package proxy

import (
	"strings"
	"sync"

	"github.com/ds01/ds01-proxy/policy"
)

// buildIDs are the builds under way that can be cancelled, and whose they are.
type buildIDs struct {
	mu   sync.Mutex
	user map[string]*buildID
}

// A buildID is an ID that a client chose; a build may come in two requests.
type buildID struct {
	user  string
	count int
}

// uploadPrefix marks the request that carries a build's context.
const uploadPrefix = "upload-request:"

// begin remembers a build of user's. Where somebody else's has the ID, owner says
// who.
func (b *buildIDs) begin(id, user string) (end func(), owner string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.user == nil {
		b.user = make(map[string]*buildID)
	}
	one := b.user[id]
	if one == nil {
		one = &buildID{user: user}
		b.user[id] = one
	}
	if one.user != user {
		return func() {}, one.user
	}
	one.count++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if one.count--; one.count == 0 {
			delete(b.user, id)
		}
	}, ""
}

// owner returns whose build has an ID at this moment.
func (b *buildIDs) owner(id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if one := b.user[id]; one != nil {
		return one.user
	}
	return ""
}

// beginBuild decides about the ID by which a build can be cancelled.
func (x *exchange) beginBuild() policy.Verdict {
	x.one("buildid")
	id := strings.TrimPrefix(x.query.Get("buildid"), uploadPrefix)
	if id == "" {
		return policy.BuildID(x.subject, "")
	}
	end, owner := x.srv.builds.begin(id, x.subject.User)
	x.atEnd(end)
	return policy.BuildID(x.subject, owner)
}

// cancelBuild cancels a build of the subject's. One that nobody has is answered as
// the Engine does.
func cancelBuild(x *exchange) (policy.Verdict, error) {
	x.one("id")
	owner := x.srv.builds.owner(strings.TrimPrefix(x.query.Get("id"), uploadPrefix))
	if owner == "" {
		x.local = []byte{}
	}
	return policy.BuildID(x.subject, owner), nil
}
