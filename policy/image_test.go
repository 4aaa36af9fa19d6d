package policy

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
)

func TestChangeTag(t *testing.T) {
	alice := &Subject{User: "alice"}
	for _, c := range []struct {
		what    string
		tag     Tag
		use     TagUse
		unowned Switch
		want    Outcome
		rule    string
		text    string
	}{
		{"a free name", Tag{Name: "a:1", Writer: "bob"}, WriteTag, SwitchDeny, Allow, "new-tag", ""},
		{"one's own", Tag{Name: "a:1", Present: true, Writer: "alice"}, WriteTag, SwitchDeny, Allow, "own-image", ""},
		{"one's own, on which oneself stands", Tag{Name: "a:1", Present: true, Writer: "alice", Standing: []string{"alice"}}, RemoveTag, SwitchDeny, Allow, "own-image", ""},
		{"one's own, on which another stands", Tag{Name: "a:1", Present: true, Writer: "alice", Standing: []string{"alice", "bob"}}, WriteTag, SwitchAllow, Refuse, "tag-in-use", "of bob's stands on the image a:1"},
		{"one's own, on which nobody known stands", Tag{Name: "a:1", Present: true, Writer: "alice", Standing: []string{""}}, WriteTag, SwitchAllow, Refuse, "tag-in-use", "of somebody else's"},
		{"another's", Tag{Name: "a:1", Present: true, Writer: "bob"}, WriteTag, SwitchAllow, Refuse, "own-image", "this image belongs to bob (a:1)"},
		{"another's, to pull", Tag{Name: "a:1", Present: true, Writer: "bob"}, PullTag, SwitchAllow, Refuse, "own-image", "this image belongs to bob"},
		{"what another pulled, to pull", Tag{Name: "a:1", Present: true, Writer: "bob", Pulled: true}, PullTag, SwitchDeny, Allow, "pull-tag", ""},
		{"what another pulled, to overwrite", Tag{Name: "a:1", Present: true, Writer: "bob", Pulled: true}, WriteTag, SwitchAllow, Refuse, "own-image", "belongs to bob"},
		{"what another pulled, to remove", Tag{Name: "a:1", Present: true, Writer: "bob", Pulled: true}, RemoveTag, SwitchAllow, Refuse, "own-image", "belongs to bob"},
		{"what another pulled and stands on, to pull", Tag{Name: "a:1", Present: true, Writer: "bob", Pulled: true, Standing: []string{"bob"}}, PullTag, SwitchAllow, Refuse, "tag-in-use", "stands on"},
		{"nobody's, to pull", Tag{Name: "a:1", Present: true}, PullTag, SwitchDeny, Allow, "pull-tag", ""},
		{"nobody's", Tag{Name: "a:1", Present: true}, RemoveTag, SwitchAllow, FailOpen, "unowned-image", "unowned_resources is allow"},
		{"nobody's, closed", Tag{Name: "a:1", Present: true}, RemoveTag, SwitchDeny, Refuse, "unowned-image", "no owner"},
	} {
		v := ChangeTag(alice, c.tag, c.use, c.unowned)
		if v.Outcome != c.want || v.Rule != c.rule || !strings.Contains(v.Reason, c.text) {
			t.Errorf("%s: %+v, want %d by %s with %q", c.what, v, c.want, c.rule, c.text)
		}
	}
	if v := MovedTag(Verdict{Reason: "no."}, "host:5000/a/b:1", "sha256:x"); v.Reason != "no. To have the registry's newer one, use docker pull host:5000/a/b@sha256:x." {
		t.Errorf("a moved tag: %s", v.Reason)
	}
}

func TestImageName(t *testing.T) {
	for name, want := range map[string]bool{
		"busybox:1": true, "facade:1": true, "facade1:1": false, "0123456789ab:latest": false, "host:5000/0123456789ab:latest": true,
		"sha256:1": false, strings.Repeat("a", 65) + ":1": true, strings.Repeat("a", 64) + ":1": false, "x/0123456789ab:latest": true,
	} {
		if got := ImageName(name).Allowed(); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestSeesImage(t *testing.T) {
	alice := &Subject{User: "alice"}
	bobs, hers, pulled, nobodys := Tag{Writer: "bob"}, Tag{Writer: "alice"}, Tag{Writer: "bob", Pulled: true}, Tag{}
	for what, c := range map[string]struct {
		view ImageView
		want bool
	}{
		"bob's by its name":                    {ImageView{Tags: []Tag{bobs}}, false},
		"bob's by its label, named by nobody":  {ImageView{Tags: []Tag{nobodys}, Builders: []string{"bob"}}, false},
		"bob's, which alice has a name for":    {ImageView{Tags: []Tag{bobs, hers}, Builders: []string{"bob"}}, true},
		"hers":                                 {ImageView{Builders: []string{"alice"}}, true},
		"both brought it":                      {ImageView{Tags: []Tag{bobs}, Builders: []string{"bob", "alice"}}, true},
		"what bob pulled":                      {ImageView{Tags: []Tag{pulled}, Pulled: true}, true},
		"what bob pulled and named":            {ImageView{Tags: []Tag{pulled, bobs}, Pulled: true}, true},
		"what was pulled by its digest":        {ImageView{Pulled: true}, true},
		"what the admin brought":               {ImageView{Tags: []Tag{nobodys}}, true},
		"a step of a build":                    {ImageView{}, false},
		"bob's, without a name, of a registry": {ImageView{Builders: []string{"bob"}, Pulled: true}, false},
	} {
		if got := SeesImage(alice, c.view, ImagesPrivate); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
		if !SeesImage(alice, c.view, ImagesShared) {
			t.Errorf("%s is hidden where images are shared", what)
		}
	}
}

// TestLabelVolumes wants every volume that the Engine would make by itself to be a
// labelled mount, and none where something else is mounted.
func TestLabelVolumes(t *testing.T) {
	req := &container.CreateRequest{
		Config: &container.Config{Volumes: map[string]struct{}{"/declared": {}, "/inherited/": {}}},
		HostConfig: &container.HostConfig{
			Binds:  []string{"/bare", "name:/named", "/host:/bound:ro"},
			Tmpfs:  map[string]string{"/tmpfs": ""},
			Mounts: []mount.Mount{{Type: mount.TypeVolume, Target: "/mounted", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"mine": "1", LabelUser: "bob"}}}, {Type: mount.TypeTmpfs, Target: "/t"}},
		},
	}
	LabelVolumes(req, &Subject{User: "alice"}, []string{"/image", "/named", "/tmpfs/", "/bound", "/declared", "/old"}, []string{"/inherited", "/old"})
	got := make(map[string]string)
	for _, m := range req.HostConfig.Mounts {
		if m.Type == mount.TypeVolume {
			got[m.Target] = m.VolumeOptions.Labels[LabelUser] + m.VolumeOptions.Labels["mine"]
		}
	}
	want := map[string]string{"/mounted": "alice1", "/bare": "alice", "/declared": "alice", "/image": "alice"}
	if len(got) != len(want) {
		t.Errorf("volumes at %v", got)
	}
	for target, labels := range want {
		if got[target] != labels {
			t.Errorf("%s has the labels %q", target, got[target])
		}
	}
	if len(req.HostConfig.Binds) != 2 {
		t.Errorf("binds: %v", req.HostConfig.Binds)
	}
}
