package integration

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestARootThatNeverAnswers has the profile list a directory whose file system is
// silent: what lies below others is bound all the same.
func TestARootThatNeverAnswers(t *testing.T) {
	p, shared := withHomes(t, "")
	f := mountFuse(t, shared, false, 0, forAll, 0)
	var roots []string
	for i := range 20 {
		roots = append(roots, fmt.Sprintf("root-%d", i))
	}
	tidy(t, roots...)
	c := lab.HTTPClient(p.Socket(lab.Bob))
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), answersWithin)
	defer cancel()
	before := threads(t, p)
	for i, got := range atOnce(t, 20, func(i int) late {
		return patiently(ctx, c, fmt.Sprintf("/containers/create?name=root-%d", i), `{"Image":"busybox:local","HostConfig":{"Binds":["`+home(lab.Bob)+`:/d"]}}`)
	}) {
		if got.status != http.StatusCreated && !t.Failed() {
			t.Errorf("bob's bind of his home, %d: %d after %v: %s", i, got.status, got.took, got.body)
		}
	}
	if now := threads(t, p); now > before+12 {
		t.Errorf("the daemon has %d threads, and had %d", now, before)
	}
	if err := f.abort(); err != nil {
		t.Error(err)
	}
}
