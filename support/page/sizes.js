// Sizes that the VAE that learns and what is drawn of it have in common.

const GARMENT_SIDE = 28;
const PIXELS = GARMENT_SIDE ** 2;
const CODE = 2; // numbers of a code
const HEADS = 2 * CODE; // mu, then logvar
const SHOWN = 1000; // codes that are drawn
const PLANE = 12; // pictures along each side of the decoded plane
const REACH = 2.5; // the plane is the square from -2.5 to 2.5, which holds 97.5% of N(0, I)
