/** The server's token: it comes behind `#`, which browsers send to nobody, leaves the address at once, and lives as long as the tab. */

const KEY = "quad-studio-token";

/** @returns {string | null} */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(KEY);
}
