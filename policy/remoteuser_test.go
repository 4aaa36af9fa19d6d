package policy

import "testing"

func TestRemoteUser(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"no JSON":                      "",
		"[]":                           "",
		`"dev"`:                        "",
		`[{"remoteUser":1}]`:           "",
		`[{"remoteUser":"dev"}]`:       "dev",
		`{"remoteUser":"dev","x":[1]}`: "dev",
		`[{"remoteUser":"a"},{"remoteUser":"b"},{"containerUser":"c"}]`: "b",
		`[{"remoteUser":"a"},{"remoteUser":""}]`:                        "a",
	} {
		says := map[string]string{labelDevMetadata: text}
		if got := RemoteUser(says, nil); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
		if got := RemoteUser(map[string]string{"devcontainer.local_folder": "/x"}, says); got != want {
			t.Errorf("%s, of the image: %q, want %q", text, got, want)
		}
		if got := RemoteUser(map[string]string{"other": "x"}, says); got != "" {
			t.Errorf("%s, of an image that no dev container is made of: %q", text, got)
		}
	}
	p := &Profile{Map: []string{"auto", "user", "root"}}
	for _, c := range []struct {
		asked, user string
		want        BindMap
	}{{"", "root", MapRoot}, {"", "dev", MapContainer}, {"auto", "dev", MapContainer}, {"user", "root", MapUser}, {"root", "dev", MapRoot}} {
		if got, v := ChooseMap(p, c.asked, c.user); got != c.want || !v.Allowed() {
			t.Errorf("%+v: %v, %v", c, got, v)
		}
	}
}
