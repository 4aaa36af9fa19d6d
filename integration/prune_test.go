package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestPruneOfAnUnknownWritersTag prunes an image of alice's that the admin has given
// another name: the switch decides, and what it lets through is loud.
func TestPruneOfAnUnknownWritersTag(t *testing.T) {
	classic(t)
	for _, c := range []struct {
		setting, verdict, rule string
		gone                   bool
	}{
		{"allow", "fail_open", "unowned-image", true},
		{"deny", "allow", "own-only", false},
	} {
		t.Run(c.setting, func(t *testing.T) {
			untag(t, "unknown-alice:1", "unknown-admins:1")
			p := configured(t, "unowned_resources: "+c.setting+"\nbuilds: {buildkit: deny}\n")
			if out, err := p.Docker(limit(t), lab.Alice, "build", "-q", "-t", "unknown-alice:1", dockerfile(t, lab.Alice, "unknown", "FROM busybox:local\nENV of="+c.setting+"\n")); err != nil {
				t.Fatal(out)
			}
			image := imageID(t, "unknown-alice:1")
			admin(t, "tag", "unknown-alice:1", "unknown-admins:1")
			if got := ask(t, p.Socket(lab.Bob), "POST", "/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D", ""); got.status != http.StatusOK || strings.Contains(got.body, image) {
				t.Errorf("bob's prune: %d %s", got.status, got.body)
			}
			got := ask(t, p.Socket(lab.Alice), "POST", "/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D", "")
			if got.status != http.StatusOK || strings.Contains(got.body, image) != c.gone {
				t.Errorf("alice's prune: %d %s", got.status, got.body)
			}
			for _, name := range []string{"unknown-alice:1", "unknown-admins:1"} {
				if (imageID(t, name) == "") != c.gone {
					t.Errorf("%s is %q", name, imageID(t, name))
				}
			}
			type pruned struct {
				record
				User string
			}
			var mine pruned
			eventually(t, "alice's prune is recorded", func() bool {
				text, err := p.Audit()
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(text) {
					var r pruned
					if json.Unmarshal([]byte(line), &r) == nil && r.PID == os.Getpid() && r.User == "alice" && r.Route == "/images/prune" {
						mine = r
					}
				}
				return mine.User != ""
			})
			if mine.Verdict != c.verdict || mine.Rule != c.rule {
				t.Errorf("recorded as %+v", mine)
			}
			if strings.Contains(p.Log(), `"cause":"unowned-image"`) != c.gone {
				t.Errorf("the log says %s", p.Log())
			}
		})
	}
}
